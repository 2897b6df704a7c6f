-- This version only adds: relays of version 4 go on beside those that know it.

-- Versions that only add to the one in `user_version`.
CREATE TABLE schema_additions (
    version INTEGER PRIMARY KEY,
    adds_to INTEGER NOT NULL
) STRICT;

-- The process that writes the row. Null once it has ended in order, or where it is of an earlier version.
ALTER TABLE nodes ADD COLUMN process TEXT;
-- Milliseconds after a heartbeat for which the node counts as alive, as it says itself.
ALTER TABLE nodes ADD COLUMN max_age_ms INTEGER;
-- Another process under the same name: where it takes requests, and when it last asked for the name.
ALTER TABLE nodes ADD COLUMN rival TEXT;
ALTER TABLE nodes ADD COLUMN rival_at INTEGER;

-- The holder's answer to claims: the node that may take the device, or itself where it keeps it.
ALTER TABLE devices ADD COLUMN yields_to TEXT;
ALTER TABLE devices ADD COLUMN yields_at INTEGER;

-- Claims to devices that another node holds, which lives. That node answers them.
CREATE TABLE claims (
    device INTEGER NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    node TEXT NOT NULL CHECK (node <> ''),
    -- Since when the holder owes an answer.
    asked_at INTEGER NOT NULL,
    -- When the claim was made last.
    claimed_at INTEGER NOT NULL,
    PRIMARY KEY (device, node)
) STRICT;

-- Refuses claims from the future. Nodes alone write `located_at`.
CREATE TRIGGER devices_claimed_early BEFORE UPDATE OF located_at ON devices
WHEN NEW.located_at IS NOT OLD.located_at AND NEW.located_at > CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) + 1000 BEGIN
    SELECT RAISE(IGNORE);
END;

-- Turns a claim to a device of another node that lives into a question to that node. An answer counts for 15 s. A node
-- that leaves a question open for 5 s counts as dead.
CREATE TRIGGER devices_claimed BEFORE UPDATE OF node ON devices
WHEN NEW.located_at IS NOT OLD.located_at AND NEW.node IS NOT OLD.node AND OLD.node IS NOT NULL AND OLD.online
    AND EXISTS (
        SELECT 1 FROM nodes WHERE name = OLD.node AND process IS NOT NULL
            AND heartbeat_at > CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) - coalesce(max_age_ms, 15000)
    )
    AND NOT CASE
        WHEN coalesce(OLD.yields_at > CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) - 15000, 0)
            THEN coalesce(OLD.yields_to = NEW.node, 0)
        ELSE EXISTS (
            SELECT 1 FROM claims WHERE device = OLD.id AND node = NEW.node
                AND asked_at <= CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) - 5000
                AND claimed_at > CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) - 10000
        )
    END BEGIN
    INSERT INTO claims (device, node, asked_at, claimed_at)
        VALUES (OLD.id, NEW.node, CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER), CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER))
        ON CONFLICT (device, node) DO UPDATE SET claimed_at = excluded.claimed_at, asked_at = CASE
            WHEN coalesce(OLD.yields_at > excluded.claimed_at - 15000, 0) OR claimed_at <= excluded.claimed_at - 10000
                THEN excluded.asked_at
            ELSE asked_at
        END;
    SELECT RAISE(IGNORE);
END;

CREATE TRIGGER devices_claimed_anew AFTER UPDATE OF node ON devices WHEN NEW.node IS NOT OLD.node BEGIN
    DELETE FROM claims WHERE device = NEW.id;
    UPDATE devices SET yields_to = NULL, yields_at = NULL WHERE id = NEW.id AND yields_at IS NOT NULL;
END;
