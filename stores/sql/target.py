"""Which database a URL or an engine means."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from asm_runtime import options
from asm_runtime.errors import DependencyMissing, ValidationError
from asm_runtime.stores.sql.database import Database
from asm_runtime.stores.sql.sqlite.connections import Connections, FileConnections, MemoryConnections
from asm_runtime.stores.sql.sqlite.database import SQLiteDatabase
from asm_runtime.stores.sql.sqlite.read_only import ReadOnlyConnections

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["DatabaseOptions", "database_of", "migrate_now"]

_SCHEMES = ("sqlite", "sqlite+pysqlite", "sqlite+aiosqlite")
_SERVERS = ("postgresql", "postgresql+asyncpg")
_ALLOWED = "sqlite:///file.db, sqlite://, postgresql://… or an AsyncEngine on sqlite+aiosqlite"
_MEMORY = ("", ":memory:")


class DatabaseOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a store that are about its database; None: not given."""

    synchronous: str | None = None
    migrate: bool | None = None
    busy_timeout_ms: int | None = None
    lease_ttl_ms: int = 10_000
    read_only: bool = False
    pool_size: int | None = None
    connect_timeout_ms: int | None = None
    statement_timeout_ms: int | None = None

    def refuse(self, kind: str, *names: str) -> None:
        """See that none of these was given, which this kind of database does not have.

        Raises:
            ValidationError: One was.
        """
        for name in names:
            value = getattr(self, name)
            if value is not None:
                raise ValidationError(
                    f"{name} is no option of {kind}", details={"option": name, "value": value}
                )


def database_of(target: str | AsyncEngine, node_id: str, given: DatabaseOptions) -> Database:
    """The database, not opened yet.

    Raises:
        ValidationError: There is no such database, or not in this release; or it has no such option.
        DependencyMissing: Its driver is not installed.
    """
    if isinstance(target, str) and target.partition("://")[0] in _SERVERS:
        return _on_server(target, node_id, given)
    given.refuse("a SQLite database", "pool_size", "connect_timeout_ms", "statement_timeout_ms")
    migrate = given.migrate is not False
    busy_timeout_ms = 10_000 if given.busy_timeout_ms is None else given.busy_timeout_ms
    if not isinstance(target, str):
        if given.read_only:
            raise _not_read_only("an engine writes as its own connections may")
        return SQLiteDatabase(_of_engine(target, migrate=migrate), node_id)
    scheme, separator, rest = target.partition("://")
    if not separator:
        raise _refused("", "there is no scheme in it")
    if scheme not in _SCHEMES:
        raise _refused(scheme, f"this release has no store for {scheme}")
    host, _, path = rest.partition("/")
    if host or "?" in path or "\0" in path:
        raise _refused(scheme, "it has a host or parameters")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise _refused(scheme, "its path cannot be encoded") from error
    if path in _MEMORY:
        if given.read_only:
            raise _not_read_only("there is nothing to read in a new database")
        return SQLiteDatabase(MemoryConnections(), node_id)
    if given.read_only:
        return SQLiteDatabase(ReadOnlyConnections(path, busy_timeout_ms=busy_timeout_ms), node_id)
    file = FileConnections(
        path,
        synchronous=given.synchronous or "FULL",
        migrate=migrate,
        busy_timeout_ms=busy_timeout_ms,
    )
    return SQLiteDatabase(file, node_id)


def migrate_now(url: str, revision: str, *, down: bool) -> None:
    """Take a database's schema to a revision, all steps or none. For a thread: it reads scripts and writes.

    Args:
        url: As for `database_of`, which has not refused it.
        revision: Which; `base`: no tables.
        down: Whether it is older than the present one; what newer tables hold is lost.

    Raises:
        ValidationError: There is no such revision that way.
        Conflict: Another process uses the database, which loses data.
        StoreError: The database refused.
    """
    # Only here: SQLAlchemy and Alembic take longer to load than a database to open.
    from asm_runtime.stores.sql.sqlite import migrating

    migrating.migrate_now(url, revision, down=down)


def _on_server(url: str, node_id: str, given: DatabaseOptions) -> Database:
    given.refuse("PostgreSQL", "synchronous", "busy_timeout_ms")
    if given.read_only:
        raise _not_read_only("a server knows who may write")
    try:
        _ = urlsplit(url).port  # one that is no number raises
    except ValueError:
        # Without what is wrong with it: that may be a piece of the password.
        raise _refused(url.partition("://")[0], "it cannot be read") from None
    if find_spec("asyncpg") is None:
        raise DependencyMissing("PostgreSQL needs asyncpg: install asm-runtime[postgres]")
    from asm_runtime.stores.sql.postgres.database import PostgresDatabase

    return PostgresDatabase(
        url,
        node_id,
        migrate=given.migrate is True,
        lease_ttl_ms=given.lease_ttl_ms,
        pool_size=given.pool_size or 8,
        connect_timeout_ms=given.connect_timeout_ms or 10_000,
        statement_timeout_ms=given.statement_timeout_ms or 30_000,
    )


def _not_read_only(why: str) -> ValidationError:
    return ValidationError(
        f"read_only is for a database file: {why}", details={"option": "read_only", "value": True}
    )


def _refused(scheme: str, why: str) -> ValidationError:
    # Without the rest of the URL: there may be a password in it.
    return ValidationError(
        f"url_or_engine must be {_ALLOWED}: {why}", details={"option": "url_or_engine", "value": scheme}
    )


def _of_engine(engine: Any, *, migrate: bool) -> Connections:
    # A caller with an engine has loaded SQLAlchemy; a URL does without.
    if "sqlalchemy.ext.asyncio" not in sys.modules:
        raise options.refused("url_or_engine", engine, "a URL or an AsyncEngine")
    from asm_runtime.stores.sql.sqlite.engine import EngineConnections

    return EngineConnections(engine, migrate=migrate)
