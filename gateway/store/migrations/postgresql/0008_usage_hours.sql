-- Hours of all tenants, users and keys together: what a report by the hour reads (U6); gateway/store/usage.py says how.

CREATE TABLE usage_hours (
    start BIGINT NOT NULL,
    model TEXT NOT NULL,
    requests BIGINT NOT NULL,
    errors BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    slot_us BIGINT NOT NULL,
    queue NUMERIC NOT NULL,
    first_byte NUMERIC NOT NULL,
    total NUMERIC NOT NULL,
    PRIMARY KEY (start, model)
);

-- No step runs meanwhile. One that waits for this lock has begun as the function of before, which would add to the cells
-- alone and move the mark: without that table it fails and adds nothing.
SELECT pg_advisory_xact_lock(1717659507);
ALTER TABLE usage_marks RENAME TO usage_rolled;

INSERT INTO usage_hours
SELECT
    start, model,
    sum(requests), sum(errors), sum(prompt_tokens), sum(completion_tokens), sum(cached_tokens), sum(slot_us),
    sum(queue), sum(first_byte), sum(total)
FROM usage_cells WHERE span = 3600000000
GROUP BY start, model;

-- As before, and the hours with the cells: rows are grouped once, finely, and the groups into all three.
CREATE OR REPLACE FUNCTION usage_roll_up(most BIGINT) RETURNS BIGINT
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    part RECORD;
    rolled BIGINT := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(1717659507);
    FOR part IN
        SELECT writer, coalesce(m.seq, 0) AS after, least(h.seq, coalesce(m.seq, 0) + most) AS upto
        FROM audit_heads h LEFT JOIN usage_rolled m USING (writer)
        WHERE h.seq > coalesce(m.seq, 0)
        ORDER BY writer
    LOOP
        WITH due AS MATERIALIZED (
            SELECT
                recorded_at / 3600000000 * 3600000000 AS start, tenant, "user", "key", model_served AS model,
                count(*) AS requests, count(*) FILTER (WHERE outcome NOT IN ('done', 'client_gone')) AS errors,
                sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens,
                sum(cached_tokens) AS cached_tokens, sum(slot_us) AS slot_us,
                coalesce(sum(usage_sketch(queue_us)) FILTER (WHERE backend <> ''), 0) AS queue,
                coalesce(sum(usage_sketch(first_byte_us)) FILTER (WHERE backend <> '' AND first_byte_us > 0), 0)
                    AS first_byte,
                coalesce(sum(usage_sketch(total_us)) FILTER (WHERE backend <> ''), 0) AS total
            FROM audit WHERE writer = part.writer AND seq > part.after AND seq <= part.upto
            GROUP BY 1, 2, 3, 4, 5
        ), cells AS (
            INSERT INTO usage_cells AS cell
            SELECT
                span, start / span * span, tenant, "user", "key", model,
                sum(requests), sum(errors), sum(prompt_tokens), sum(completion_tokens), sum(cached_tokens),
                sum(slot_us), sum(queue), sum(first_byte), sum(total)
            FROM due CROSS JOIN (VALUES (3600000000), (86400000000)) AS spans (span)
            GROUP BY 1, 2, 3, 4, 5, 6
            ON CONFLICT (span, start, tenant, "user", "key", model) DO UPDATE SET
                requests = cell.requests + excluded.requests,
                errors = cell.errors + excluded.errors,
                prompt_tokens = cell.prompt_tokens + excluded.prompt_tokens,
                completion_tokens = cell.completion_tokens + excluded.completion_tokens,
                cached_tokens = cell.cached_tokens + excluded.cached_tokens,
                slot_us = cell.slot_us + excluded.slot_us,
                queue = cell.queue + excluded.queue,
                first_byte = cell.first_byte + excluded.first_byte,
                total = cell.total + excluded.total
        )
        INSERT INTO usage_hours AS hour
        SELECT
            start, model,
            sum(requests), sum(errors), sum(prompt_tokens), sum(completion_tokens), sum(cached_tokens),
            sum(slot_us), sum(queue), sum(first_byte), sum(total)
        FROM due
        GROUP BY 1, 2
        ON CONFLICT (start, model) DO UPDATE SET
            requests = hour.requests + excluded.requests,
            errors = hour.errors + excluded.errors,
            prompt_tokens = hour.prompt_tokens + excluded.prompt_tokens,
            completion_tokens = hour.completion_tokens + excluded.completion_tokens,
            cached_tokens = hour.cached_tokens + excluded.cached_tokens,
            slot_us = hour.slot_us + excluded.slot_us,
            queue = hour.queue + excluded.queue,
            first_byte = hour.first_byte + excluded.first_byte,
            total = hour.total + excluded.total;
        INSERT INTO usage_rolled (writer, seq) VALUES (part.writer, part.upto)
        ON CONFLICT (writer) DO UPDATE SET seq = excluded.seq;
        rolled := rolled + part.upto - part.after;
        EXIT WHEN rolled >= most;
    END LOOP;
    RETURN rolled;
END
$$;
