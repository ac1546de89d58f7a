-- The audit trail rolled up for usage reports (U6); gateway/store/usage.py says how.
-- queue, first_byte, total: sketches of microseconds (gateway/store/sketch.py).

CREATE TABLE usage_cells (
    span BIGINT NOT NULL,
    start BIGINT NOT NULL,
    tenant TEXT NOT NULL,
    "user" TEXT NOT NULL,
    "key" TEXT NOT NULL,
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
    PRIMARY KEY (span, start, tenant, "user", "key", model)
);
CREATE INDEX usage_cells_by_key ON usage_cells ("key", span, start);

-- Up to which row of each writer the cells have it.
CREATE TABLE usage_marks (
    writer TEXT PRIMARY KEY,
    seq BIGINT NOT NULL
);

-- One duration as a sketch: 1 in the place of its bucket.
CREATE FUNCTION usage_sketch(us BIGINT) RETURNS NUMERIC LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ('1e' || 12 * CASE WHEN us < 1000 THEN 0
        ELSE least(159, 1 + floor(6 * ln(us / 1000.0::DOUBLE PRECISION) / ln(2::DOUBLE PRECISION))::INTEGER)
    END)::NUMERIC
$$;

-- Add up to `most` rows to the cells and move the marks -> how many; 0: none was due. Gateways call it: it runs as its
-- owner, so that their role cannot change what was used. One at a time: who waited sees the marks of who went before.
CREATE FUNCTION usage_roll_up(most BIGINT) RETURNS BIGINT
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    part RECORD;
    rolled BIGINT := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(1717659507);
    FOR part IN
        SELECT writer, coalesce(m.seq, 0) AS after, least(h.seq, coalesce(m.seq, 0) + most) AS upto
        FROM audit_heads h LEFT JOIN usage_marks m USING (writer)
        WHERE h.seq > coalesce(m.seq, 0)
        ORDER BY writer
    LOOP
        INSERT INTO usage_cells AS cell
        SELECT
            span, recorded_at / span * span, tenant, "user", "key", model_served,
            count(*), count(*) FILTER (WHERE outcome NOT IN ('done', 'client_gone')),
            sum(prompt_tokens), sum(completion_tokens), sum(cached_tokens), sum(slot_us),
            coalesce(sum(queue), 0), coalesce(sum(first_byte), 0), coalesce(sum(total), 0)
        FROM (
            SELECT
                *,
                CASE WHEN backend <> '' THEN usage_sketch(queue_us) END AS queue,
                CASE WHEN backend <> '' AND first_byte_us > 0 THEN usage_sketch(first_byte_us) END AS first_byte,
                CASE WHEN backend <> '' THEN usage_sketch(total_us) END AS total
            FROM audit WHERE writer = part.writer AND seq > part.after AND seq <= part.upto
            OFFSET 0  -- computed once for both spans
        ) AS due
        CROSS JOIN (VALUES (3600000000), (86400000000)) AS spans (span)
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
            total = cell.total + excluded.total;
        INSERT INTO usage_marks (writer, seq) VALUES (part.writer, part.upto)
        ON CONFLICT (writer) DO UPDATE SET seq = excluded.seq;
        rolled := rolled + part.upto - part.after;
        EXIT WHEN rolled >= most;
    END LOOP;
    RETURN rolled;
END
$$;

DROP INDEX audit_by_key;
