-- Prompts of keys that opted in (U5); what admins do (U7): operations of any kind; keys that are disabled for a while.

ALTER TABLE keys ADD COLUMN prompt_days BIGINT NOT NULL DEFAULT 0;
ALTER TABLE keys ADD COLUMN disabled_at BIGINT;

CREATE TABLE prompts (
    seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id TEXT NOT NULL,
    at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    tenant TEXT NOT NULL,
    "user" TEXT NOT NULL,
    "key" TEXT NOT NULL,
    route TEXT NOT NULL,
    model TEXT NOT NULL,
    size BIGINT NOT NULL,
    body BYTEA NOT NULL
);
CREATE INDEX prompts_by_id ON prompts (id);
CREATE INDEX prompts_by_key ON prompts ("key", seq);
CREATE INDEX prompts_by_end ON prompts (expires_at);

ALTER TABLE operations DROP CONSTRAINT operations_kind_check;
