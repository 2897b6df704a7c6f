-- This version only adds: relays of version 4 go on beside those that know it.

-- The newest version that only adds to this row's.
ALTER TABLE sluicegate.schema_version ADD COLUMN adds_up_to bigint;

ALTER TABLE sluicegate.nodes
    -- The process that writes this row. Null once it has ended in order, or where it is of an earlier version.
    ADD COLUMN process text,
    -- Milliseconds after a heartbeat for which the node counts as alive, as it says itself.
    ADD COLUMN max_age_ms bigint,
    -- Another process under the same name: where it takes requests, and when it last asked for the name.
    ADD COLUMN rival text,
    ADD COLUMN rival_at timestamptz;

ALTER TABLE sluicegate.devices
    -- The holder's answer to claims: the node that may take the device, or itself where it keeps it.
    ADD COLUMN yields_to text,
    ADD COLUMN yields_at timestamptz;

-- Claims to devices that another node holds, which lives. That node answers them.
CREATE TABLE sluicegate.claims (
    device bigint NOT NULL REFERENCES sluicegate.devices (id) ON DELETE CASCADE,
    node text NOT NULL CHECK (node <> ''),
    -- Since when the holder owes an answer.
    asked_at timestamptz NOT NULL DEFAULT now(),
    -- When the claim was made last.
    claimed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (device, node)
);

-- Refuses claims from the future, and turns a claim to a device of another node that lives into a question to that
-- node. An answer counts for 15 s. A node that leaves a question open for 5 s counts as dead. Whoever may delete devices
-- administers them, and is no node. A row that is refused stays as it is, and the others of its statement are written.
CREATE FUNCTION sluicegate.judge_claim() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = sluicegate, pg_temp AS $$
DECLARE
    is_answered boolean := coalesce(OLD.yields_at > now() - interval '15 seconds', false);
BEGIN
    IF NOT has_table_privilege(session_user, 'sluicegate.devices', 'DELETE') THEN
        IF NEW.located_at > now() THEN
            RETURN NULL;
        END IF;
        IF NEW.node IS DISTINCT FROM OLD.node AND OLD.node IS NOT NULL AND OLD.online
            AND EXISTS (
                SELECT FROM nodes WHERE name = OLD.node AND process IS NOT NULL
                    AND heartbeat_at > now() - coalesce(max_age_ms, 15000) * interval '1 millisecond'
            )
            AND NOT (CASE WHEN is_answered THEN coalesce(OLD.yields_to = NEW.node, false) ELSE EXISTS (
                SELECT FROM claims WHERE device = OLD.id AND node = NEW.node
                    AND asked_at <= now() - interval '5 seconds' AND claimed_at > now() - interval '10 seconds'
            ) END)
        THEN
            IF NEW.node <> '' THEN
                INSERT INTO claims AS claim (device, node) VALUES (OLD.id, NEW.node)
                    ON CONFLICT (device, node) DO UPDATE SET claimed_at = now(), asked_at = CASE
                        WHEN is_answered OR claim.claimed_at <= now() - interval '10 seconds' THEN now()
                        ELSE claim.asked_at
                    END;
            END IF;
            RETURN NULL;
        END IF;
    END IF;
    IF NEW.node IS DISTINCT FROM OLD.node THEN
        NEW.yields_to := NULL;
        NEW.yields_at := NULL;
        DELETE FROM claims WHERE device = OLD.id;
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER devices_claimed BEFORE UPDATE OF node, located_at ON sluicegate.devices
FOR EACH ROW WHEN (OLD.node IS DISTINCT FROM NEW.node OR OLD.located_at IS DISTINCT FROM NEW.located_at)
EXECUTE FUNCTION sluicegate.judge_claim();
ALTER TABLE sluicegate.devices ENABLE ALWAYS TRIGGER devices_claimed;

REVOKE ALL ON FUNCTION sluicegate.judge_claim() FROM PUBLIC;

-- Roles that could claim devices so far can answer claims too.
DO $$
DECLARE
    role record;
BEGIN
    FOR role IN
        SELECT DISTINCT grantee FROM information_schema.column_privileges
        WHERE table_schema = 'sluicegate' AND table_name = 'devices' AND column_name = 'located_at'
            AND privilege_type = 'UPDATE' AND grantee <> 'PUBLIC'
    LOOP
        EXECUTE format('GRANT SELECT ON sluicegate.claims TO %I', role.grantee);
        EXECUTE format('GRANT SELECT (id, yields_to, yields_at), UPDATE (yields_to, yields_at) ON sluicegate.devices TO %I',
            role.grantee);
    END LOOP;
END $$;
