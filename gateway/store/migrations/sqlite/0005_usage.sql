-- One key's own view of its usage (U6). A time range of all keys is served by (recorded_at, writer, seq).

CREATE INDEX audit_by_key ON audit ("key", recorded_at);
