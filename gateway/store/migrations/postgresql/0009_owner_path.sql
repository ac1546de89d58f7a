-- What the owner's functions read and write is what the owner made (U4).

-- As before, and nobody but the owner may change a month, whatever ALTER DEFAULT PRIVILEGES gives on new tables: rows are
-- added by way of the whole.
CREATE OR REPLACE FUNCTION audit_make_partitions(months INTEGER) RETURNS INTEGER
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    first TIMESTAMP;
    part TEXT;
    who TEXT;
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
            FOR who IN
                SELECT DISTINCT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END
                FROM pg_class CROSS JOIN aclexplode(relacl)
                WHERE pg_class.oid = to_regclass(part) AND grantee <> relowner
            LOOP
                EXECUTE format('REVOKE INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER ON %I FROM %s', part, who);
            END LOOP;
            made := made + 1;
        END IF;
    END LOOP;
    RETURN made;
END
$$;

-- A search path that does not name pg_temp begins there: whoever calls a function of the owner's could put a table of his
-- own, with triggers, in the place of one that it writes, and run as the owner. Functions that a later migration makes or
-- replaces need the same.
DO $$
DECLARE
    own REGPROCEDURE;
BEGIN
    FOR own IN
        SELECT pg_proc.oid FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pronamespace
        WHERE nspname = current_schema() AND prosecdef
            AND proname IN ('note_change', 'audit_make_partitions', 'usage_roll_up')
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', own, current_schema());
    END LOOP;
END
$$;
