-- What operators changed while gateways run, and what gateways remember across a restart.

-- Append-only (U7): the latest row of a (kind, id) is in force, a null body removes it.
CREATE TABLE operations (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL CHECK (kind IN ('setting', 'reservation')),
    id TEXT NOT NULL,
    body TEXT CHECK (body IS NULL OR json_valid(body)),
    at INTEGER NOT NULL,
    actor TEXT NOT NULL
) STRICT;
CREATE INDEX operations_by_id ON operations (kind, id, seq);
CREATE TRIGGER operations_never_updated BEFORE UPDATE ON operations BEGIN
    SELECT RAISE(ABORT, 'operations are append-only');
END;
CREATE TRIGGER operations_never_deleted BEFORE DELETE ON operations BEGIN
    SELECT RAISE(ABORT, 'operations are append-only');
END;

-- Fair-use accounts as a scheduler last knew them.
CREATE TABLE saved_usage (
    writer TEXT PRIMARY KEY,
    body TEXT NOT NULL CHECK (json_valid(body)),
    at INTEGER NOT NULL
) STRICT;
