-- Tenants, users, keys and the log of their changes.
-- Times are UTC, integer microseconds since the Unix epoch.

CREATE TABLE tenants (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    created_at BIGINT NOT NULL,
    disabled_at BIGINT,
    share DOUBLE PRECISION NOT NULL CHECK (share > 0),
    allow_all_models BOOLEAN NOT NULL,
    models JSONB NOT NULL,
    cidrs JSONB NOT NULL
);

CREATE TABLE users (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL REFERENCES tenants (id),
    name TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    disabled_at BIGINT,
    share DOUBLE PRECISION NOT NULL CHECK (share > 0),
    UNIQUE (tenant, name)
);

CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    "user" TEXT NOT NULL REFERENCES users (id),
    name TEXT NOT NULL,
    hash TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    revoked_at BIGINT,
    allow_all_models BOOLEAN,
    models JSONB NOT NULL,
    scopes JSONB NOT NULL,
    cidrs JSONB NOT NULL,
    priority TEXT NOT NULL CHECK (priority IN ('interactive', 'batch', 'system')),
    queue_timeout DOUBLE PRECISION CHECK (queue_timeout > 0),
    on_behalf BOOLEAN NOT NULL,
    force_model TEXT NOT NULL
);
CREATE INDEX keys_by_user ON keys ("user");

-- Apart from keys, so that using a key is not a change of the key.
CREATE TABLE key_use (
    "key" TEXT PRIMARY KEY REFERENCES keys (id) ON DELETE CASCADE,
    last_used_at BIGINT NOT NULL
);

-- What gateways watch to forget what they derived from a row. Old entries go: whoever is that late forgets everything.
-- Versions come from a locked row, not a sequence: they commit in order and without gaps, so a watcher that saw one has
-- seen all before it.
CREATE TABLE changes (
    version BIGINT PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('tenant', 'user', 'key')),
    id TEXT NOT NULL
);
CREATE TABLE change_counter (
    singleton BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (singleton),
    version BIGINT NOT NULL
);
INSERT INTO change_counter (version) VALUES (0);

CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    latest BIGINT;
BEGIN
    UPDATE change_counter SET version = version + 1 RETURNING version INTO latest;
    INSERT INTO changes (version, kind, id) VALUES (latest, TG_ARGV[0], OLD.id);
    DELETE FROM changes WHERE version <= latest - 10000;
    PERFORM pg_notify('fairgate_changes', '');
    RETURN NULL;
END
$$;
CREATE TRIGGER tenants_changed AFTER UPDATE OR DELETE ON tenants
    FOR EACH ROW EXECUTE FUNCTION note_change('tenant');
CREATE TRIGGER users_changed AFTER UPDATE OR DELETE ON users
    FOR EACH ROW EXECUTE FUNCTION note_change('user');
CREATE TRIGGER keys_changed AFTER UPDATE OR DELETE ON keys
    FOR EACH ROW EXECUTE FUNCTION note_change('key');
