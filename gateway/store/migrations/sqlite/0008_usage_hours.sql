-- Hours of all tenants, users and keys together: what a report by the hour reads (U6); gateway/store/usage.py says how.

CREATE TABLE usage_hours (
    start INTEGER NOT NULL,
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
    PRIMARY KEY (start, model)
) STRICT, WITHOUT ROWID;

INSERT INTO usage_hours
SELECT
    start, model,
    sum(requests), sum(errors), sum(prompt_tokens), sum(completion_tokens), sum(cached_tokens), sum(slot_us),
    sketch_sum(queue), sketch_sum(first_byte), sketch_sum(total)
FROM usage_cells WHERE span = 3600000000
GROUP BY start, model;

-- A program of before would add to the cells alone and move the mark: without this table its step fails and adds nothing.
ALTER TABLE usage_marks RENAME TO usage_rolled;
