-- The reference schema, in a schema of its own, so that it can lie beside other tables.
--
-- No number is ever used again (identities): relays remember the number of what was revoked.

CREATE SCHEMA IF NOT EXISTS sluicegate;

-- One row for each migration that was applied.
CREATE TABLE sluicegate.schema_version (
    version bigint PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE sluicegate.principals (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL CHECK (name <> ''),
    created_at timestamptz NOT NULL DEFAULT now(),
    removed_at timestamptz
);

-- A removed principal keeps its row, and gives its name free.
CREATE UNIQUE INDEX principals_by_name ON sluicegate.principals (name) WHERE removed_at IS NULL;

CREATE TABLE sluicegate.credentials (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key_sha256 bytea NOT NULL UNIQUE CHECK (octet_length(key_sha256) = 32),
    principal bigint NOT NULL REFERENCES sluicegate.principals (id),
    label text,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz
);

CREATE INDEX credentials_by_principal ON sluicegate.credentials (principal);

CREATE TABLE sluicegate.fleets (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE CHECK (name <> '')
);

-- The nodes of an installation, and where each takes what another forwards to it.
CREATE TABLE sluicegate.nodes (
    name text PRIMARY KEY CHECK (name <> ''),
    forward_address text,
    heartbeat_at timestamptz
);

CREATE TABLE sluicegate.devices (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    uuid text NOT NULL UNIQUE CHECK (uuid ~ '^([0-9a-f]{32}|[0-9a-f]{62})$'),
    name text,
    fleet bigint REFERENCES sluicegate.fleets (id),
    -- A host, not a network.
    address inet CHECK (masklen(address) = CASE family(address) WHEN 4 THEN 32 ELSE 128 END),
    node text CHECK (node <> ''),
    online boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX devices_by_fleet ON sluicegate.devices (fleet);

CREATE TABLE sluicegate.grants (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    principal bigint NOT NULL REFERENCES sluicegate.principals (id),
    scope text NOT NULL CHECK (scope IN ('any', 'fleet', 'device')),
    -- The fleet's or the device's id.
    target bigint,
    port_min integer NOT NULL CHECK (port_min BETWEEN 1 AND 65535),
    port_max integer NOT NULL CHECK (port_max BETWEEN port_min AND 65535),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    CHECK ((scope = 'any') = (target IS NULL))
);

CREATE INDEX grants_by_principal ON sluicegate.grants (principal);
CREATE INDEX grants_by_target ON sluicegate.grants (target) WHERE target IS NOT NULL;

-- The outbox: which rows changed. Its numbers are in no order that a reader could rely on: a transaction may
-- commit long after one that began later. Readers go by `xid`.
CREATE TABLE sluicegate.changes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    relation text NOT NULL CHECK (relation IN ('principals', 'credentials', 'grants', 'devices')),
    -- What the relation is keyed by: the SHA-256 for credentials, the id elsewhere.
    key_sha256 bytea,
    key_id bigint,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK ((relation = 'credentials') = (key_sha256 IS NOT NULL)),
    CHECK ((relation = 'credentials') = (key_id IS NULL))
);

CREATE INDEX changes_by_xid ON sluicegate.changes (xid);

-- What has left the outbox. Who has not read up to `pruned_xid` when `prunes` moves reads everything.
CREATE TABLE sluicegate.outbox_state (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    prunes bigint NOT NULL DEFAULT 0,
    pruned_xid xid8 NOT NULL DEFAULT '0'
);

INSERT INTO sluicegate.outbox_state DEFAULT VALUES;

-- Keeps the outbox to about 100,000 rows: with every thousandth row, removes up to 10,000 that are older.
--
-- Never waits for another transaction and never fails one: where it could, it leaves it to a later one.
CREATE FUNCTION sluicegate.prune_changes() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = sluicegate, pg_temp AS $$
DECLARE
    oldest bigint;
    newest bigint;
    pruned xid8;
BEGIN
    SELECT min(id), max(id) INTO oldest, newest FROM written;
    IF oldest IS NULL OR newest / 1000 = (oldest - 1) / 1000 THEN
        RETURN NULL;
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed'
        OR current_setting('sluicegate.has_pruned', true) = 'yes'
        OR NOT pg_try_advisory_xact_lock(x'534c4754'::integer, 0)
    THEN
        RETURN NULL;
    END IF;
    PERFORM set_config('sluicegate.has_pruned', 'yes', true);
    WITH gone AS (
        DELETE FROM changes WHERE id IN (
            SELECT id FROM changes WHERE id <= newest - 100000 ORDER BY id LIMIT 10000
        ) RETURNING xid
    )
    SELECT xid INTO pruned FROM gone
        -- Later ones were not written here: they came with a dump of another cluster.
        WHERE xid <= pg_current_xact_id() ORDER BY xid DESC LIMIT 1;
    IF pruned IS NOT NULL THEN
        UPDATE outbox_state SET prunes = prunes + 1, pruned_xid = CASE
            WHEN pruned_xid BETWEEN pruned AND pg_current_xact_id() THEN pruned_xid ELSE pruned
        END;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER changes_written AFTER INSERT ON sluicegate.changes
REFERENCING NEW TABLE AS written
FOR EACH STATEMENT EXECUTE FUNCTION sluicegate.prune_changes();

CREATE FUNCTION sluicegate.tell_of_credentials() RETURNS trigger
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
            SELECT FROM before_it JOIN after_it USING (id)
            WHERE before_it.revoked_at IS NULL AND after_it.revoked_at IS NOT NULL
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

CREATE FUNCTION sluicegate.tell_of_grants() RETURNS trigger
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
            SELECT FROM before_it JOIN after_it USING (id)
            WHERE before_it.revoked_at IS NULL AND after_it.revoked_at IS NOT NULL
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

-- What was granted on a device ends with it.
CREATE FUNCTION sluicegate.tell_of_devices() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = sluicegate, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO changes (relation, key_id) SELECT 'devices', id FROM after_it;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO changes (relation, key_id)
            SELECT 'devices', id FROM before_it UNION SELECT 'devices', id FROM after_it;
    ELSE
        INSERT INTO changes (relation, key_id) SELECT 'devices', id FROM before_it;
        UPDATE grants SET revoked_at = now() FROM before_it
            WHERE scope = 'device' AND target = before_it.id AND revoked_at IS NULL;
    END IF;
    RETURN NULL;
END $$;

-- What a principal holds ends with it, whoever removes it and however.
CREATE FUNCTION sluicegate.tell_of_principals() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = sluicegate, pg_temp AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        INSERT INTO changes (relation, key_id)
            SELECT 'principals', id FROM before_it JOIN after_it USING (id)
            WHERE before_it.removed_at IS NULL AND after_it.removed_at IS NOT NULL;
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

-- Rows that go without a word each: there is no other way to tell than to have everything read.
CREATE FUNCTION sluicegate.tell_of_truncation() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = sluicegate, pg_temp AS $$
BEGIN
    UPDATE outbox_state SET prunes = prunes + 1, pruned_xid = pg_current_xact_id();
    PERFORM pg_notify('sluicegate', '');
    RETURN NULL;
END $$;

CREATE FUNCTION sluicegate.refuse() RETURNS trigger
LANGUAGE plpgsql SET search_path = sluicegate, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '%', TG_ARGV[0];
END $$;

CREATE TRIGGER credentials_inserted AFTER INSERT ON sluicegate.credentials REFERENCING NEW TABLE AS after_it
FOR EACH STATEMENT EXECUTE FUNCTION sluicegate.tell_of_credentials();
CREATE TRIGGER credentials_updated AFTER UPDATE ON sluicegate.credentials
REFERENCING OLD TABLE AS before_it NEW TABLE AS after_it
FOR EACH STATEMENT EXECUTE FUNCTION sluicegate.tell_of_credentials();
CREATE TRIGGER credentials_deleted AFTER DELETE ON sluicegate.credentials REFERENCING OLD TABLE AS before_it
FOR EACH STATEMENT EXECUTE FUNCTION sluicegate.tell_of_credentials();
CREATE TRIGGER credentials_truncated AFTER TRUNCATE ON sluicegate.credentials
FOR EACH STATEMENT EXECUTE FUNCTION sluicegate.tell_of_truncation();
CREATE TRIGGER credentials_stay_revoked BEFORE UPDATE OF revoked_at ON sluicegate.credentials
FOR EACH ROW WHEN (OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS NULL)
EXECUTE FUNCTION sluicegate.refuse('a revoked credential does not come back; issue a new token');

CREATE TRIGGER grants_inserted AFTER INSERT ON sluicegate.grants REFERENCING NEW TABLE AS after_it
FOR EACH STATEMENT EXECUTE FUNCTION sluicegate.tell_of_grants();
CREATE TRIGGER grants_updated AFTER UPDATE ON sluicegate.grants
REFERENCING OLD TABLE AS before_it NEW TABLE AS after_it
FOR EACH STATEMENT EXECUTE FUNCTION sluicegate.tell_of_grants();
CREATE TRIGGER grants_deleted AFTER DELETE ON sluicegate.grants REFERENCING OLD TABLE AS before_it
FOR EACH STATEMENT EXECUTE FUNCTION sluicegate.tell_of_grants();
CREATE TRIGGER grants_truncated AFTER TRUNCATE ON sluicegate.grants
FOR EACH STATEMENT EXECUTE FUNCTION sluicegate.tell_of_truncation();
CREATE TRIGGER grants_stay_revoked BEFORE UPDATE OF revoked_at ON sluicegate.grants
FOR EACH ROW WHEN (OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS NULL)
EXECUTE FUNCTION sluicegate.refuse('a revoked grant does not come back; add a new one');

CREATE TRIGGER devices_inserted AFTER INSERT ON sluicegate.devices REFERENCING NEW TABLE AS after_it
FOR EACH STATEMENT EXECUTE FUNCTION sluicegate.tell_of_devices();
CREATE TRIGGER devices_updated AFTER UPDATE ON sluicegate.devices
REFERENCING OLD TABLE AS before_it NEW TABLE AS after_it
FOR EACH STATEMENT EXECUTE FUNCTION sluicegate.tell_of_devices();
CREATE TRIGGER devices_deleted AFTER DELETE ON sluicegate.devices REFERENCING OLD TABLE AS before_it
FOR EACH STATEMENT EXECUTE FUNCTION sluicegate.tell_of_devices();
CREATE TRIGGER devices_truncated AFTER TRUNCATE ON sluicegate.devices
FOR EACH STATEMENT EXECUTE FUNCTION sluicegate.tell_of_truncation();

CREATE TRIGGER principals_updated AFTER UPDATE ON sluicegate.principals
REFERENCING OLD TABLE AS before_it NEW TABLE AS after_it
FOR EACH STATEMENT EXECUTE FUNCTION sluicegate.tell_of_principals();
CREATE TRIGGER principals_deleted AFTER DELETE ON sluicegate.principals REFERENCING OLD TABLE AS before_it
FOR EACH STATEMENT EXECUTE FUNCTION sluicegate.tell_of_principals();
CREATE TRIGGER principals_truncated AFTER TRUNCATE ON sluicegate.principals
FOR EACH STATEMENT EXECUTE FUNCTION sluicegate.tell_of_truncation();
CREATE TRIGGER principals_stay_removed BEFORE UPDATE OF removed_at ON sluicegate.principals
FOR EACH ROW WHEN (OLD.removed_at IS NOT NULL AND NEW.removed_at IS NULL)
EXECUTE FUNCTION sluicegate.refuse('a removed principal does not come back; add a new one');

-- Only triggers call these; nobody else has a reason to.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA sluicegate FROM PUBLIC;
