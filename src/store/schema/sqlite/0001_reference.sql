-- The reference schema. Times are milliseconds since 1970-01-01T00:00:00Z.
--
-- No number is ever used again (AUTOINCREMENT): relays remember the number of what was revoked.

CREATE TABLE principals (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL CHECK (name <> ''),
    created_at INTEGER NOT NULL,
    removed_at INTEGER
) STRICT;

-- A removed principal keeps its row, and gives its name free.
CREATE UNIQUE INDEX principals_by_name ON principals (name) WHERE removed_at IS NULL;

CREATE TABLE credentials (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key_sha256 BLOB NOT NULL UNIQUE CHECK (length(key_sha256) = 32),
    principal INTEGER NOT NULL REFERENCES principals (id),
    label TEXT,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER
) STRICT;

CREATE INDEX credentials_by_principal ON credentials (principal);

CREATE TABLE fleets (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE CHECK (name <> '')
) STRICT;

-- The nodes of an installation, and where each takes what another forwards to it.
CREATE TABLE nodes (
    name TEXT PRIMARY KEY CHECK (name <> ''),
    forward_address TEXT,
    heartbeat_at INTEGER
) STRICT;

CREATE TABLE devices (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL UNIQUE CHECK (length(uuid) IN (32, 62) AND uuid NOT GLOB '*[^0-9a-f]*'),
    name TEXT,
    fleet INTEGER REFERENCES fleets (id),
    address TEXT CHECK (address <> ''),
    node TEXT CHECK (node <> ''),
    online INTEGER NOT NULL DEFAULT 1 CHECK (online IN (0, 1)),
    created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX devices_by_fleet ON devices (fleet);

CREATE TABLE grants (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    principal INTEGER NOT NULL REFERENCES principals (id),
    scope TEXT NOT NULL CHECK (scope IN ('any', 'fleet', 'device')),
    -- The fleet's or the device's id.
    target INTEGER,
    port_min INTEGER NOT NULL CHECK (port_min BETWEEN 1 AND 65535),
    port_max INTEGER NOT NULL CHECK (port_max BETWEEN port_min AND 65535),
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER,
    CHECK ((scope = 'any') = (target IS NULL))
) STRICT;

CREATE INDEX grants_by_principal ON grants (principal);
CREATE INDEX grants_by_target ON grants (target) WHERE target IS NOT NULL;

-- The outbox: which rows changed, in commit order. `key` is what the relation is keyed by: the SHA-256 for
-- credentials, the id elsewhere. Writers prune it; who finds its place gone reads everything.
CREATE TABLE changes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    relation TEXT NOT NULL CHECK (relation IN ('principals', 'credentials', 'grants', 'devices')),
    key ANY NOT NULL,
    -- Not unixepoch('subsec'), which a sqlite3 shell older than 3.42 does not know.
    changed_at INTEGER NOT NULL DEFAULT (CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER))
) STRICT;

CREATE TRIGGER credentials_inserted AFTER INSERT ON credentials BEGIN
    INSERT INTO changes (relation, key) VALUES ('credentials', NEW.key_sha256);
END;

CREATE TRIGGER credentials_updated AFTER UPDATE ON credentials BEGIN
    INSERT INTO changes (relation, key) SELECT 'credentials', OLD.key_sha256
        WHERE OLD.key_sha256 <> NEW.key_sha256;
    INSERT INTO changes (relation, key) VALUES ('credentials', NEW.key_sha256);
END;

CREATE TRIGGER credentials_deleted AFTER DELETE ON credentials BEGIN
    INSERT INTO changes (relation, key) VALUES ('credentials', OLD.key_sha256);
END;

CREATE TRIGGER grants_inserted AFTER INSERT ON grants BEGIN
    INSERT INTO changes (relation, key) VALUES ('grants', NEW.id);
END;

CREATE TRIGGER grants_updated AFTER UPDATE ON grants BEGIN
    INSERT INTO changes (relation, key) SELECT 'grants', OLD.id WHERE OLD.id <> NEW.id;
    INSERT INTO changes (relation, key) VALUES ('grants', NEW.id);
END;

CREATE TRIGGER grants_deleted AFTER DELETE ON grants BEGIN
    INSERT INTO changes (relation, key) VALUES ('grants', OLD.id);
END;

CREATE TRIGGER devices_inserted AFTER INSERT ON devices BEGIN
    INSERT INTO changes (relation, key) VALUES ('devices', NEW.id);
END;

CREATE TRIGGER devices_updated AFTER UPDATE ON devices BEGIN
    INSERT INTO changes (relation, key) SELECT 'devices', OLD.id WHERE OLD.id <> NEW.id;
    INSERT INTO changes (relation, key) VALUES ('devices', NEW.id);
END;

-- What was granted on a device ends with it.
CREATE TRIGGER devices_deleted AFTER DELETE ON devices BEGIN
    INSERT INTO changes (relation, key) VALUES ('devices', OLD.id);
    UPDATE grants SET revoked_at = CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)
        WHERE scope = 'device' AND target = OLD.id AND revoked_at IS NULL;
END;

-- What a principal holds ends with it, whoever removes it and however.
CREATE TRIGGER principals_removed AFTER UPDATE OF removed_at ON principals
WHEN NEW.removed_at IS NOT NULL AND OLD.removed_at IS NULL BEGIN
    INSERT INTO changes (relation, key) VALUES ('principals', NEW.id);
    UPDATE credentials SET revoked_at = NEW.removed_at WHERE principal = NEW.id AND revoked_at IS NULL;
    UPDATE grants SET revoked_at = NEW.removed_at WHERE principal = NEW.id AND revoked_at IS NULL;
END;

CREATE TRIGGER principals_deleted AFTER DELETE ON principals BEGIN
    INSERT INTO changes (relation, key) VALUES ('principals', OLD.id);
END;

CREATE TRIGGER principals_stay_removed BEFORE UPDATE OF removed_at ON principals
WHEN OLD.removed_at IS NOT NULL AND NEW.removed_at IS NULL BEGIN
    SELECT RAISE(ABORT, 'a removed principal does not come back; add a new one');
END;

CREATE TRIGGER credentials_stay_revoked BEFORE UPDATE OF revoked_at ON credentials
WHEN OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS NULL BEGIN
    SELECT RAISE(ABORT, 'a revoked credential does not come back; issue a new token');
END;

CREATE TRIGGER grants_stay_revoked BEFORE UPDATE OF revoked_at ON grants
WHEN OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS NULL BEGIN
    SELECT RAISE(ABORT, 'a revoked grant does not come back; add a new one');
END;
