-- One row per request (U1), and what makes the rows of each writer a chain (U4). No references: history outlives what it
-- names.
CREATE TABLE audit (
    id TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    "user" TEXT NOT NULL,
    "key" TEXT NOT NULL,
    ip TEXT NOT NULL,
    dialect TEXT NOT NULL,
    route TEXT NOT NULL,
    method TEXT NOT NULL,
    model_asked TEXT NOT NULL,
    model_served TEXT NOT NULL,
    backend TEXT NOT NULL,
    status INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    error TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    usage_estimated INTEGER NOT NULL CHECK (usage_estimated IN (0, 1)),
    queue_us INTEGER NOT NULL,
    first_byte_us INTEGER NOT NULL,
    total_us INTEGER NOT NULL,
    bytes_in INTEGER NOT NULL,
    bytes_out INTEGER NOT NULL,
    "rank" INTEGER NOT NULL,
    queue_len INTEGER NOT NULL,
    usage_before REAL NOT NULL,
    slot_us INTEGER NOT NULL,
    writer TEXT NOT NULL,
    seq INTEGER NOT NULL,
    recorded_at INTEGER NOT NULL,
    hash BLOB NOT NULL,
    UNIQUE (writer, seq)
) STRICT;
CREATE INDEX audit_by_time ON audit (recorded_at, writer, seq);

-- Where each chain ends. A batch of rows moves it from the end its writer knows, in one transaction: exactly once.
CREATE TABLE audit_heads (
    writer TEXT PRIMARY KEY,
    seq INTEGER NOT NULL,
    recorded_at INTEGER NOT NULL,
    hash BLOB NOT NULL
) STRICT;

-- Append-only (U4).
CREATE TRIGGER audit_never_updated BEFORE UPDATE ON audit BEGIN
    SELECT RAISE(ABORT, 'audit rows are append-only');
END;
CREATE TRIGGER audit_never_deleted BEFORE DELETE ON audit BEGIN
    SELECT RAISE(ABORT, 'audit rows are append-only');
END;
