"""The tables of a log in PostgreSQL, and the command that creates them.

The owner of the schema creates it; the daemon's role can read and write rows, and creates and
drops tables of segments only through two functions that run as the owner.
"""

from __future__ import annotations

from typing import Any

from psycopg import sql

FORMAT = 2
NEEDS = "0.2"
"""The linkd version that reads this format."""

SCHEMA = """
create schema linkd;
create table linkd.log (
    one boolean primary key default true check (one),
    format int not null,
    needs text not null,
    node text,
    fence bigint not null default 0,
    hub text not null default '',
    commits bigint not null default 0,
    incarnation text not null default ''
);
insert into linkd.log (format, needs) values (2, '0.2');
create table linkd.file (
    id bigint generated always as identity primary key,
    name text not null unique,
    own boolean not null
);
create table linkd.piece (
    file bigint not null,
    at bigint not null,
    body bytea not null,
    token bigint,
    primary key (file, at)
);
alter table linkd.piece alter column body set storage external;
create table linkd.kept (
    kind text not null,
    key text not null,
    value bytea,
    rank bigint not null default 0,
    changed xid8 not null default pg_current_xact_id(),
    primary key (kind, key)
);
create index kept_changed on linkd.kept (changed);

create function linkd.drop_file(held bigint, called text) returns void
language plpgsql security definer set search_path = pg_catalog set lock_timeout = '2s' as $$
declare gone linkd.file;
begin
    perform from linkd.log where fence = held;
    if not found then raise exception 'another linkd has this log' using errcode = 'LK001'; end if;
    delete from linkd.file where name = called returning * into gone;
    if gone.own then
        execute format('drop table linkd.piece_%s', gone.id);
    else
        delete from linkd.piece where file = gone.id;
    end if;
end $$;

create function linkd.create_file(held bigint, called text, own boolean) returns bigint
language plpgsql security definer set search_path = pg_catalog as $$
declare number bigint;
begin
    perform linkd.drop_file(held, called);
    insert into linkd.file (name, own) values (called, own) returning id into number;
    if own then
        execute format('create table linkd.piece_%s (like linkd.piece including all)', number);
        execute format(
            'grant select, insert, update, delete on linkd.piece_%s to %I', number, session_user);
    end if;
    return number;
end $$;

revoke all on function linkd.drop_file, linkd.create_file from public;
"""

FROM_1 = """
alter table linkd.log add column incarnation text not null default '';
alter table linkd.piece add column token bigint;
do $$
declare number bigint;
begin
    for number in select id from linkd.file where own loop
        execute format('alter table linkd.piece_%s add column token bigint', number);
    end loop;
end $$;
alter table linkd.kept alter column value drop not null,
    add column rank bigint not null default 0,
    add column changed xid8 not null default pg_current_xact_id();
create index kept_changed on linkd.kept (changed);
"""
"""Brings tables of format 1, which had one instance only, to format 2."""

GRANTS = """
grant usage on schema linkd to {role};
grant select, update on linkd.log to {role};
grant select, insert, update, delete on linkd.file, linkd.piece, linkd.kept to {role};
grant execute on function linkd.drop_file, linkd.create_file to {role};
"""


def create(connection: Any, role: str) -> bool:
    """Create the schema or bring it to this format, and let `role` use it.

    Returns:
        Whether it did not exist before.

    Raises:
        psycopg.Error: The database refuses.
    """
    with connection.transaction():
        (found,) = connection.execute("select to_regnamespace('linkd') is not null").fetchone()
        if not found:
            connection.execute(SCHEMA)
        (version,) = connection.execute("select format from linkd.log for update").fetchone()
        if version < FORMAT:
            connection.execute(FROM_1)
        if version <= FORMAT:
            connection.execute("update linkd.log set format = %s, needs = %s", (FORMAT, NEEDS))
        connection.execute(sql.SQL(GRANTS).format(role=sql.Identifier(role)))
    return not found
