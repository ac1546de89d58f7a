-- What operators changed while gateways run, and what gateways remember across a restart.

-- Append-only (U7): the latest row of a (kind, id) is in force, a null body removes it.
CREATE TABLE operations (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('setting', 'reservation')),
    id text NOT NULL,
    body text,
    at bigint NOT NULL,
    actor text NOT NULL
);
CREATE INDEX operations_by_id ON operations (kind, id, seq);

-- Fair-use accounts as a scheduler last knew them.
CREATE TABLE saved_usage (
    writer text PRIMARY KEY,
    body text NOT NULL,
    at bigint NOT NULL
);
