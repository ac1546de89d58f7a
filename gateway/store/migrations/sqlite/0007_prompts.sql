-- Prompts of keys that opted in (U5); what admins do (U7): operations of any kind; keys that are disabled for a while.

ALTER TABLE keys ADD COLUMN prompt_days INTEGER NOT NULL DEFAULT 0;
ALTER TABLE keys ADD COLUMN disabled_at INTEGER;

CREATE TABLE prompts (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    "user" TEXT NOT NULL,
    "key" TEXT NOT NULL,
    route TEXT NOT NULL,
    model TEXT NOT NULL,
    size INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX prompts_by_id ON prompts (id);
CREATE INDEX prompts_by_key ON prompts ("key", seq);
CREATE INDEX prompts_by_end ON prompts (expires_at);

CREATE TABLE operations_of_any_kind (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    body TEXT CHECK (body IS NULL OR json_valid(body)),
    at INTEGER NOT NULL,
    actor TEXT NOT NULL
) STRICT;
INSERT INTO operations_of_any_kind SELECT seq, kind, id, body, at, actor FROM operations;
DROP TABLE operations;
ALTER TABLE operations_of_any_kind RENAME TO operations;
CREATE INDEX operations_by_id ON operations (kind, id, seq);
CREATE TRIGGER operations_never_updated BEFORE UPDATE ON operations BEGIN
    SELECT RAISE(ABORT, 'operations are append-only');
END;
CREATE TRIGGER operations_never_deleted BEFORE DELETE ON operations BEGIN
    SELECT RAISE(ABORT, 'operations are append-only');
END;
