-- Tenants, users, keys and the log of their changes.
-- Times are UTC, integer microseconds since the Unix epoch. Lists are JSON arrays of text.

CREATE TABLE tenants (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL,
    disabled_at INTEGER,
    share REAL NOT NULL CHECK (share > 0),
    allow_all_models INTEGER NOT NULL CHECK (allow_all_models IN (0, 1)),
    models TEXT NOT NULL CHECK (json_valid(models)),
    cidrs TEXT NOT NULL CHECK (json_valid(cidrs))
) STRICT;

CREATE TABLE users (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL REFERENCES tenants (id),
    name TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    disabled_at INTEGER,
    share REAL NOT NULL CHECK (share > 0),
    UNIQUE (tenant, name)
) STRICT;

CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    "user" TEXT NOT NULL REFERENCES users (id),
    name TEXT NOT NULL,
    hash TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER,
    allow_all_models INTEGER CHECK (allow_all_models IN (0, 1)),
    models TEXT NOT NULL CHECK (json_valid(models)),
    scopes TEXT NOT NULL CHECK (json_valid(scopes)),
    cidrs TEXT NOT NULL CHECK (json_valid(cidrs)),
    priority TEXT NOT NULL CHECK (priority IN ('interactive', 'batch', 'system')),
    queue_timeout REAL CHECK (queue_timeout > 0),
    on_behalf INTEGER NOT NULL CHECK (on_behalf IN (0, 1)),
    force_model TEXT NOT NULL
) STRICT;
CREATE INDEX keys_by_user ON keys ("user");

-- Apart from keys, so that using a key is not a change of the key.
CREATE TABLE key_use (
    "key" TEXT PRIMARY KEY REFERENCES keys (id) ON DELETE CASCADE,
    last_used_at INTEGER NOT NULL
) STRICT;

-- What gateways watch to forget what they derived from a row. Old entries go: whoever is that late forgets everything.
CREATE TABLE changes (
    version INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL CHECK (kind IN ('tenant', 'user', 'key')),
    id TEXT NOT NULL
) STRICT;
CREATE TRIGGER changes_pruned AFTER INSERT ON changes BEGIN
    DELETE FROM changes WHERE version <= NEW.version - 10000;
END;
CREATE TRIGGER tenants_updated AFTER UPDATE ON tenants BEGIN
    INSERT INTO changes (kind, id) VALUES ('tenant', OLD.id);
END;
CREATE TRIGGER tenants_deleted AFTER DELETE ON tenants BEGIN
    INSERT INTO changes (kind, id) VALUES ('tenant', OLD.id);
END;
CREATE TRIGGER users_updated AFTER UPDATE ON users BEGIN
    INSERT INTO changes (kind, id) VALUES ('user', OLD.id);
END;
CREATE TRIGGER users_deleted AFTER DELETE ON users BEGIN
    INSERT INTO changes (kind, id) VALUES ('user', OLD.id);
END;
CREATE TRIGGER keys_updated AFTER UPDATE ON keys BEGIN
    INSERT INTO changes (kind, id) VALUES ('key', OLD.id);
END;
CREATE TRIGGER keys_deleted AFTER DELETE ON keys BEGIN
    INSERT INTO changes (kind, id) VALUES ('key', OLD.id);
END;
