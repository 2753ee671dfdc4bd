# Roles, the database and the standby's way in: run once by the image of PostgreSQL, in a new database.
# There is no standby yet, so these commits must not wait for one.
PGOPTIONS='-c synchronous_commit=local' psql -v ON_ERROR_STOP=1 -U postgres <<END
create role linkd_owner login password '$(cat /run/secrets/owner)';
create role linkd login password '$(cat /run/secrets/linkd)';
create role replicator login replication password '$(cat /run/secrets/replicator)';
create database linkd owner linkd_owner;
END
echo 'host replication replicator samenet scram-sha-256' >>"$PGDATA/pg_hba.conf"
