#!/bin/sh
# Run by the image's entry point once, while the data folder is new: the database and its owner, who is no superuser.
set -eu
psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname=postgres <<'SQL'
SET log_min_error_statement = panic; -- no statement with a password reaches the log
\set password `cat /run/secrets/hpo_owner_password`
CREATE ROLE hpo_owner LOGIN CREATEROLE PASSWORD :'password';
CREATE DATABASE hpo OWNER hpo_owner;
\connect hpo
-- Large objects are nobody's table: a reader could fill the disk with them, and pg_dump as the owner would fail.
REVOKE EXECUTE ON FUNCTION lo_create(oid), lo_creat(integer), lo_from_bytea(oid, bytea) FROM PUBLIC;
SQL
