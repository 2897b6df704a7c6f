-- The outbox records the row as it was written, and not only its key. What a view later shows in the table's place is
-- then no word of the store's own: it is compared with what was written, as any other answer is.

-- 1 if the row is gone, or the principal removed. Null in rows of earlier versions and where a statement may yet leave
-- the row as it is (see `credentials_replaced`): these name the key alone.
ALTER TABLE changes ADD COLUMN gone INTEGER CHECK (gone IN (0, 1));
ALTER TABLE changes ADD COLUMN principal INTEGER;
ALTER TABLE changes ADD COLUMN scope TEXT;
ALTER TABLE changes ADD COLUMN target INTEGER;
ALTER TABLE changes ADD COLUMN port_min INTEGER;
ALTER TABLE changes ADD COLUMN port_max INTEGER;
ALTER TABLE changes ADD COLUMN expires_at INTEGER;
ALTER TABLE changes ADD COLUMN revoked INTEGER CHECK (revoked IN (0, 1));
ALTER TABLE changes ADD COLUMN uuid TEXT;
ALTER TABLE changes ADD COLUMN fleet INTEGER;
ALTER TABLE changes ADD COLUMN address TEXT;
ALTER TABLE changes ADD COLUMN node TEXT;
ALTER TABLE changes ADD COLUMN online INTEGER;

DROP TRIGGER credentials_inserted;
DROP TRIGGER credentials_updated;
DROP TRIGGER credentials_deleted;
DROP TRIGGER grants_inserted;
DROP TRIGGER grants_updated;
DROP TRIGGER grants_deleted;
DROP TRIGGER devices_inserted;
DROP TRIGGER devices_updated;
DROP TRIGGER devices_deleted;
DROP TRIGGER principals_inserted;
DROP TRIGGER principals_renumbered;
DROP TRIGGER principals_removed;
DROP TRIGGER principals_deleted;

CREATE TRIGGER credentials_inserted AFTER INSERT ON credentials BEGIN
    INSERT INTO changes (relation, key, gone, principal, expires_at, revoked)
        VALUES ('credentials', NEW.key_sha256, 0, NEW.principal, NEW.expires_at,
            NEW.revoked_at IS NOT NULL
            OR EXISTS (SELECT 1 FROM principals WHERE id = NEW.principal AND removed_at IS NOT NULL));
END;

CREATE TRIGGER credentials_updated AFTER UPDATE ON credentials BEGIN
    INSERT INTO changes (relation, key, gone) SELECT 'credentials', OLD.key_sha256, 1
        WHERE OLD.key_sha256 <> NEW.key_sha256;
    INSERT INTO changes (relation, key, gone, principal, expires_at, revoked)
        VALUES ('credentials', NEW.key_sha256, 0, NEW.principal, NEW.expires_at,
            NEW.revoked_at IS NOT NULL
            OR EXISTS (SELECT 1 FROM principals WHERE id = NEW.principal AND removed_at IS NOT NULL));
END;

CREATE TRIGGER credentials_deleted AFTER DELETE ON credentials BEGIN
    INSERT INTO changes (relation, key, gone) VALUES ('credentials', OLD.key_sha256, 1);
END;

CREATE TRIGGER grants_inserted AFTER INSERT ON grants BEGIN
    INSERT INTO changes (relation, key, gone, principal, scope, target, port_min, port_max, expires_at, revoked)
        VALUES ('grants', NEW.id, 0, NEW.principal, NEW.scope, NEW.target, NEW.port_min, NEW.port_max, NEW.expires_at,
            NEW.revoked_at IS NOT NULL
            OR EXISTS (SELECT 1 FROM principals WHERE id = NEW.principal AND removed_at IS NOT NULL));
END;

CREATE TRIGGER grants_updated AFTER UPDATE ON grants BEGIN
    INSERT INTO changes (relation, key, gone) SELECT 'grants', OLD.id, 1 WHERE OLD.id <> NEW.id;
    INSERT INTO changes (relation, key, gone, principal, scope, target, port_min, port_max, expires_at, revoked)
        VALUES ('grants', NEW.id, 0, NEW.principal, NEW.scope, NEW.target, NEW.port_min, NEW.port_max, NEW.expires_at,
            NEW.revoked_at IS NOT NULL
            OR EXISTS (SELECT 1 FROM principals WHERE id = NEW.principal AND removed_at IS NOT NULL));
END;

CREATE TRIGGER grants_deleted AFTER DELETE ON grants BEGIN
    INSERT INTO changes (relation, key, gone) VALUES ('grants', OLD.id, 1);
END;

CREATE TRIGGER devices_inserted AFTER INSERT ON devices BEGIN
    INSERT INTO changes (relation, key, gone, uuid, fleet, address, node, online)
        VALUES ('devices', NEW.id, 0, NEW.uuid, NEW.fleet, NEW.address, NEW.node, NEW.online);
END;

CREATE TRIGGER devices_updated AFTER UPDATE ON devices BEGIN
    INSERT INTO changes (relation, key, gone) SELECT 'devices', OLD.id, 1 WHERE OLD.id <> NEW.id;
    INSERT INTO changes (relation, key, gone, uuid, fleet, address, node, online)
        VALUES ('devices', NEW.id, 0, NEW.uuid, NEW.fleet, NEW.address, NEW.node, NEW.online);
END;

-- What was granted on a device ends with it.
CREATE TRIGGER devices_deleted AFTER DELETE ON devices BEGIN
    INSERT INTO changes (relation, key, gone) VALUES ('devices', OLD.id, 1);
    UPDATE grants SET revoked_at = CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)
        WHERE scope = 'device' AND target = OLD.id AND revoked_at IS NULL;
END;

CREATE TRIGGER principals_inserted AFTER INSERT ON principals BEGIN
    INSERT INTO changes (relation, key, gone) VALUES ('principals', NEW.id, NEW.removed_at IS NOT NULL);
END;

CREATE TRIGGER principals_renumbered AFTER UPDATE OF id ON principals WHEN OLD.id <> NEW.id BEGIN
    INSERT INTO changes (relation, key, gone)
        VALUES ('principals', OLD.id, 1), ('principals', NEW.id, NEW.removed_at IS NOT NULL);
END;

-- What a principal holds ends with it, whoever removes it and however.
CREATE TRIGGER principals_removed AFTER UPDATE OF removed_at ON principals
WHEN NEW.removed_at IS NOT NULL AND OLD.removed_at IS NULL BEGIN
    INSERT INTO changes (relation, key, gone) VALUES ('principals', NEW.id, 1);
    UPDATE credentials SET revoked_at = NEW.removed_at WHERE principal = NEW.id AND revoked_at IS NULL;
    UPDATE grants SET revoked_at = NEW.removed_at WHERE principal = NEW.id AND revoked_at IS NULL;
END;

CREATE TRIGGER principals_deleted AFTER DELETE ON principals BEGIN
    INSERT INTO changes (relation, key, gone) VALUES ('principals', OLD.id, 1);
END;
