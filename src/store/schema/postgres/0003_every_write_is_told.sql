-- Every write reaches the outbox, whatever `session_replication_role` the writer has set. The triggers that refuse to
-- bring back what has ended stay off under `replica`: they guard against a slip, and whoever sets that role means it.

ALTER TABLE sluicegate.changes ENABLE ALWAYS TRIGGER changes_written;
ALTER TABLE sluicegate.credentials ENABLE ALWAYS TRIGGER credentials_inserted;
ALTER TABLE sluicegate.credentials ENABLE ALWAYS TRIGGER credentials_updated;
ALTER TABLE sluicegate.credentials ENABLE ALWAYS TRIGGER credentials_deleted;
ALTER TABLE sluicegate.credentials ENABLE ALWAYS TRIGGER credentials_truncated;
ALTER TABLE sluicegate.grants ENABLE ALWAYS TRIGGER grants_inserted;
ALTER TABLE sluicegate.grants ENABLE ALWAYS TRIGGER grants_updated;
ALTER TABLE sluicegate.grants ENABLE ALWAYS TRIGGER grants_deleted;
ALTER TABLE sluicegate.grants ENABLE ALWAYS TRIGGER grants_truncated;
ALTER TABLE sluicegate.devices ENABLE ALWAYS TRIGGER devices_inserted;
ALTER TABLE sluicegate.devices ENABLE ALWAYS TRIGGER devices_updated;
ALTER TABLE sluicegate.devices ENABLE ALWAYS TRIGGER devices_deleted;
ALTER TABLE sluicegate.devices ENABLE ALWAYS TRIGGER devices_truncated;
ALTER TABLE sluicegate.principals ENABLE ALWAYS TRIGGER principals_updated;
ALTER TABLE sluicegate.principals ENABLE ALWAYS TRIGGER principals_deleted;
ALTER TABLE sluicegate.principals ENABLE ALWAYS TRIGGER principals_truncated;

-- A change that takes a right away wakes the relays: besides revocations and deletions, an earlier end, fewer ports,
-- another target and another principal.
CREATE OR REPLACE FUNCTION sluicegate.tell_of_credentials() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = sluicegate, pg_temp AS $$
DECLARE
    ended boolean := false;
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO changes (relation, key_sha256) SELECT 'credentials', key_sha256 FROM after_it;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO changes (relation, key_sha256)
            SELECT 'credentials', key_sha256 FROM before_it UNION SELECT 'credentials', key_sha256 FROM after_it;
        ended := EXISTS (
            SELECT FROM before_it LEFT JOIN after_it USING (id)
            WHERE after_it.key_sha256 IS DISTINCT FROM before_it.key_sha256
                OR after_it.principal <> before_it.principal
                OR before_it.revoked_at IS NULL AND after_it.revoked_at IS NOT NULL
                OR after_it.expires_at < coalesce(before_it.expires_at, 'infinity')
        );
    ELSE
        INSERT INTO changes (relation, key_sha256) SELECT 'credentials', key_sha256 FROM before_it;
        ended := FOUND;
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
    IF TG_OP = 'INSERT' THEN
        INSERT INTO changes (relation, key_id) SELECT 'grants', id FROM after_it;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO changes (relation, key_id)
            SELECT 'grants', id FROM before_it UNION SELECT 'grants', id FROM after_it;
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
    ELSE
        INSERT INTO changes (relation, key_id) SELECT 'grants', id FROM before_it;
        ended := FOUND;
    END IF;
    IF ended THEN
        PERFORM pg_notify('sluicegate', '');
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION sluicegate.tell_of_devices() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = sluicegate, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO changes (relation, key_id) SELECT 'devices', id FROM after_it;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO changes (relation, key_id)
            SELECT 'devices', id FROM before_it UNION SELECT 'devices', id FROM after_it;
    ELSE
        INSERT INTO changes (relation, key_id) SELECT 'devices', id FROM before_it;
        IF FOUND THEN
            PERFORM pg_notify('sluicegate', '');
        END IF;
        UPDATE grants SET revoked_at = now() FROM before_it
            WHERE scope = 'device' AND target = before_it.id AND revoked_at IS NULL;
    END IF;
    RETURN NULL;
END $$;

-- A principal that is there again is told as well. Nothing that it held comes back with it.
CREATE OR REPLACE FUNCTION sluicegate.tell_of_principals() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = sluicegate, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO changes (relation, key_id) SELECT 'principals', id FROM after_it;
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        INSERT INTO changes (relation, key_id)
            SELECT 'principals', before_it.id FROM before_it LEFT JOIN after_it USING (id)
            WHERE (before_it.removed_at IS NULL) <> (after_it.removed_at IS NULL) OR after_it.name IS NULL
            UNION
            SELECT 'principals', after_it.id FROM after_it LEFT JOIN before_it USING (id)
            WHERE before_it.name IS NULL;
    ELSE
        INSERT INTO changes (relation, key_id) SELECT 'principals', id FROM before_it;
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

CREATE TRIGGER principals_inserted AFTER INSERT ON sluicegate.principals REFERENCING NEW TABLE AS after_it
FOR EACH STATEMENT EXECUTE FUNCTION sluicegate.tell_of_principals();
ALTER TABLE sluicegate.principals ENABLE ALWAYS TRIGGER principals_inserted;
