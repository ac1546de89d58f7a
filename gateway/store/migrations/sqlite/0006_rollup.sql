-- The audit trail rolled up for usage reports (U6); gateway/store/usage.py says how.
-- queue, first_byte, total: sketches of microseconds (gateway/store/sketch.py).

CREATE TABLE usage_cells (
    span INTEGER NOT NULL,
    start INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    "user" TEXT NOT NULL,
    "key" TEXT NOT NULL,
    model TEXT NOT NULL,
    requests INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    slot_us INTEGER NOT NULL,
    queue BLOB NOT NULL,
    first_byte BLOB NOT NULL,
    total BLOB NOT NULL,
    PRIMARY KEY (span, start, tenant, "user", "key", model)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_cells_by_key ON usage_cells ("key", span, start);

-- Up to which row of each writer the cells have it.
CREATE TABLE usage_marks (
    writer TEXT PRIMARY KEY,
    seq INTEGER NOT NULL
) STRICT;

DROP INDEX audit_by_key;
