-- The outbox records the row as it was written, and not only its key. What a view, a policy or a rule later shows in the
-- table's place is then no word of the store's own: it is compared with what was written, as any other answer is.

ALTER TABLE sluicegate.changes
    -- True if the row is gone, or the principal removed. Null in rows of earlier versions, which name the key alone.
    ADD COLUMN gone boolean,
    ADD COLUMN principal bigint,
    ADD COLUMN scope text,
    ADD COLUMN target bigint,
    ADD COLUMN port_min integer,
    ADD COLUMN port_max integer,
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN revoked boolean,
    ADD COLUMN uuid text,
    ADD COLUMN fleet bigint,
    ADD COLUMN address inet,
    ADD COLUMN node text,
    ADD COLUMN online boolean;

CREATE OR REPLACE FUNCTION sluicegate.tell_of_credentials() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = sluicegate, pg_temp AS $$
DECLARE
    ended boolean := false;
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO changes (relation, key_sha256, gone) SELECT 'credentials', key_sha256, true FROM before_it;
        ended := FOUND;
    ELSE
        IF TG_OP = 'UPDATE' THEN
            INSERT INTO changes (relation, key_sha256, gone)
                SELECT 'credentials', key_sha256, true FROM before_it
                    WHERE NOT EXISTS (SELECT FROM after_it WHERE after_it.key_sha256 = before_it.key_sha256);
            ended := EXISTS (
                SELECT FROM before_it LEFT JOIN after_it USING (id)
                WHERE after_it.key_sha256 IS DISTINCT FROM before_it.key_sha256
                    OR after_it.principal <> before_it.principal
                    OR before_it.revoked_at IS NULL AND after_it.revoked_at IS NOT NULL
                    OR after_it.expires_at < coalesce(before_it.expires_at, 'infinity')
            );
        END IF;
        INSERT INTO changes (relation, key_sha256, gone, principal, expires_at, revoked)
            SELECT 'credentials', key_sha256, false, principal, expires_at,
                revoked_at IS NOT NULL OR removed_at IS NOT NULL
            FROM after_it LEFT JOIN principals ON principals.id = principal;
    END IF;
    IF ended THEN
        PERFORM pg_notify('sluicegate', '');
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION sluicegate.tell_of_grants() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = sluicegate, pg_temp AS $$
DECLARE
    ended boolean := false;
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO changes (relation, key_id, gone) SELECT 'grants', id, true FROM before_it;
        ended := FOUND;
    ELSE
        IF TG_OP = 'UPDATE' THEN
            INSERT INTO changes (relation, key_id, gone)
                SELECT 'grants', id, true FROM before_it
                    WHERE NOT EXISTS (SELECT FROM after_it WHERE after_it.id = before_it.id);
            ended := EXISTS (
                SELECT FROM before_it LEFT JOIN after_it USING (id)
                WHERE after_it.principal IS DISTINCT FROM before_it.principal
                    OR after_it.scope <> before_it.scope
                    OR after_it.target IS DISTINCT FROM before_it.target
                    OR after_it.port_min > before_it.port_min
                    OR after_it.port_max < before_it.port_max
                    OR before_it.revoked_at IS NULL AND after_it.revoked_at IS NOT NULL
                    OR after_it.expires_at < coalesce(before_it.expires_at, 'infinity')
            );
        END IF;
        INSERT INTO changes
            (relation, key_id, gone, principal, scope, target, port_min, port_max, expires_at, revoked)
            SELECT 'grants', after_it.id, false, principal, scope, target, port_min, port_max, expires_at,
                revoked_at IS NOT NULL OR removed_at IS NOT NULL
            FROM after_it LEFT JOIN principals ON principals.id = principal;
    END IF;
    IF ended THEN
        PERFORM pg_notify('sluicegate', '');
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION sluicegate.tell_of_devices() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = sluicegate, pg_temp AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO changes (relation, key_id, gone) SELECT 'devices', id, true FROM before_it;
        IF FOUND THEN
            PERFORM pg_notify('sluicegate', '');
        END IF;
        UPDATE grants SET revoked_at = now() FROM before_it
            WHERE scope = 'device' AND target = before_it.id AND revoked_at IS NULL;
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        INSERT INTO changes (relation, key_id, gone)
            SELECT 'devices', id, true FROM before_it
                WHERE NOT EXISTS (SELECT FROM after_it WHERE after_it.id = before_it.id);
    END IF;
    INSERT INTO changes (relation, key_id, gone, uuid, fleet, address, node, online)
        SELECT 'devices', id, false, uuid, fleet, address, node, online FROM after_it;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION sluicegate.tell_of_principals() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = sluicegate, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO changes (relation, key_id, gone) SELECT 'principals', id, removed_at IS NOT NULL FROM after_it;
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        INSERT INTO changes (relation, key_id, gone)
            SELECT 'principals', before_it.id, after_it.name IS NULL OR after_it.removed_at IS NOT NULL
            FROM before_it LEFT JOIN after_it USING (id)
            WHERE (before_it.removed_at IS NULL) <> (after_it.removed_at IS NULL) OR after_it.name IS NULL
            UNION
            SELECT 'principals', after_it.id, after_it.removed_at IS NOT NULL
            FROM after_it LEFT JOIN before_it USING (id)
            WHERE before_it.name IS NULL;
    ELSE
        INSERT INTO changes (relation, key_id, gone) SELECT 'principals', id, true FROM before_it;
    END IF;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        UPDATE credentials SET revoked_at = after_it.removed_at FROM after_it
            WHERE principal = after_it.id AND after_it.removed_at IS NOT NULL AND revoked_at IS NULL;
        UPDATE grants SET revoked_at = after_it.removed_at FROM after_it
            WHERE principal = after_it.id AND after_it.removed_at IS NOT NULL AND revoked_at IS NULL;
    END IF;
    PERFORM pg_notify('sluicegate', '');
    RETURN NULL;
END $$;
