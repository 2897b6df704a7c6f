-- The store's identity. A copy keeps it, so that a restored backup is known as the same store at an earlier time.
CREATE TABLE store_identity (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    id BLOB NOT NULL CHECK (length(id) = 16)
) STRICT;

INSERT INTO store_identity (one, id) VALUES (1, randomblob(16));

CREATE TRIGGER store_identity_stays BEFORE UPDATE ON store_identity BEGIN
    SELECT RAISE(ABORT, 'the identity of a store stays; make another store for another one');
END;

CREATE TRIGGER store_identity_is_not_lost BEFORE DELETE ON store_identity BEGIN
    SELECT RAISE(ABORT, 'the identity of a store stays; make another store for another one');
END;

-- The outbox prunes itself, whoever writes: of more than 101,000 rows all but the newest 100,000 go.
CREATE TRIGGER changes_pruned AFTER INSERT ON changes WHEN NEW.id % 1000 = 0 BEGIN
    DELETE FROM changes WHERE id <= NEW.id - 100000;
END;

-- A principal that comes to exist, or gets another number: what was said of that number is out of date.
CREATE TRIGGER principals_inserted AFTER INSERT ON principals BEGIN
    INSERT INTO changes (relation, key) VALUES ('principals', NEW.id);
END;

CREATE TRIGGER principals_renumbered AFTER UPDATE OF id ON principals WHEN OLD.id <> NEW.id BEGIN
    INSERT INTO changes (relation, key) VALUES ('principals', OLD.id), ('principals', NEW.id);
END;

-- REPLACE deletes the rows that are in its way without their DELETE triggers.
CREATE TRIGGER credentials_replaced BEFORE INSERT ON credentials BEGIN
    INSERT INTO changes (relation, key) SELECT 'credentials', key_sha256 FROM credentials
        WHERE id = NEW.id OR key_sha256 = NEW.key_sha256;
END;

CREATE TRIGGER credentials_replaced_by_update BEFORE UPDATE OF id, key_sha256 ON credentials BEGIN
    INSERT INTO changes (relation, key) SELECT 'credentials', key_sha256 FROM credentials
        WHERE id <> OLD.id AND (id = NEW.id OR key_sha256 = NEW.key_sha256);
END;

CREATE TRIGGER devices_replaced BEFORE INSERT ON devices BEGIN
    INSERT INTO changes (relation, key) SELECT 'devices', id FROM devices
        WHERE id = NEW.id OR uuid = NEW.uuid;
END;

CREATE TRIGGER devices_replaced_by_update BEFORE UPDATE OF id, uuid ON devices BEGIN
    INSERT INTO changes (relation, key) SELECT 'devices', id FROM devices
        WHERE id <> OLD.id AND (id = NEW.id OR uuid = NEW.uuid);
END;
