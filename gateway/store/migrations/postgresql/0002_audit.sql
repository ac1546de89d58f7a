-- One row per request (U1), and what makes the rows of each writer a chain (U4). No references: history outlives what it
-- names. One partition for each month of recorded_at, so that retention drops whole months.
CREATE TABLE audit (
    id TEXT NOT NULL,
    started_at BIGINT NOT NULL,
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
    status BIGINT NOT NULL,
    outcome TEXT NOT NULL,
    error TEXT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    usage_estimated BOOLEAN NOT NULL,
    queue_us BIGINT NOT NULL,
    first_byte_us BIGINT NOT NULL,
    total_us BIGINT NOT NULL,
    bytes_in BIGINT NOT NULL,
    bytes_out BIGINT NOT NULL,
    "rank" BIGINT NOT NULL,
    queue_len BIGINT NOT NULL,
    usage_before DOUBLE PRECISION NOT NULL,
    slot_us BIGINT NOT NULL,
    writer TEXT NOT NULL,
    seq BIGINT NOT NULL,
    recorded_at BIGINT NOT NULL,
    hash BYTEA NOT NULL,
    PRIMARY KEY (recorded_at, writer, seq)
) PARTITION BY RANGE (recorded_at);
CREATE INDEX audit_by_writer ON audit (writer, seq);

-- What no month's partition takes; empty unless partitions were not made in time.
CREATE TABLE audit_rest PARTITION OF audit DEFAULT;

-- Make the partitions of this month and those after it, `months` in all. Gateways call it: it runs as its owner.
CREATE FUNCTION audit_make_partitions(months INTEGER) RETURNS INTEGER
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    first TIMESTAMP;
    part TEXT;
    made INTEGER := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(1717659506);
    FOR n IN 0 .. least(months, 120) - 1 LOOP
        first := date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => n);
        part := 'audit_' || to_char(first, 'YYYY_MM');
        IF to_regclass(part) IS NULL THEN
            EXECUTE format(
                'CREATE TABLE %I PARTITION OF audit FOR VALUES FROM (%s) TO (%s)',
                part,
                (extract(epoch FROM first) * 1000000)::BIGINT,
                (extract(epoch FROM first + interval '1 month') * 1000000)::BIGINT
            );
            made := made + 1;
        END IF;
    END LOOP;
    RETURN made;
END
$$;
SELECT audit_make_partitions(12);

-- Where each chain ends. A batch of rows moves it from the end its writer knows, in one transaction: exactly once.
CREATE TABLE audit_heads (
    writer TEXT PRIMARY KEY,
    seq BIGINT NOT NULL,
    recorded_at BIGINT NOT NULL,
    hash BYTEA NOT NULL
);
