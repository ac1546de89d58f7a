#!/bin/sh
# Runs once, when the database is created, and creates the role that gateways connect as. `fairgate migrate --app-role`
# grants it what it needs, which for the audit trail is only reading and appending.
set -eu
password=$(cat /run/secrets/app_password)
psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --set password="$password" <<'SQL'
CREATE ROLE fairgate_app LOGIN PASSWORD :'password';
SQL
