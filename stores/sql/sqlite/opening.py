"""What a database needs before it can be used: WAL mode and the schema."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from asm_runtime.errors import StoreError
from asm_runtime.stores.sql import version
from asm_runtime.stores.sql.sqlite import forks
from asm_runtime.stores.sql.sqlite.nodes import Nodes
from asm_runtime.stores.sql.sqlite.transaction import Cursor

__all__ = ["begin", "connect", "is_ready", "prepare_file", "revision_of", "upgrade_on"]

OPENING_TIMEOUT_MS = 60_000
"""How long to wait for other processes that are making the same database ready."""


def connect(path: str, busy_timeout_ms: int) -> sqlite3.Connection:
    """A connection on which transactions begin and end only where it is said."""
    return sqlite3.connect(path, timeout=busy_timeout_ms / 1000, isolation_level=None, cached_statements=256)


def begin(cursor: Cursor) -> None:
    """Begin a transaction that writes: wait until nobody else does."""
    with forks.WAITING:
        cursor.execute("BEGIN IMMEDIATE")


def revision_of(cursor: Cursor) -> str | None:
    """The revision of the database; None: it has no schema."""
    try:
        cursor.execute(f"SELECT version_num FROM {version.VERSION_TABLE}")
    except Exception as error:  # sqlite3's, or SQLAlchemy's of it
        if "no such table" in str(error):
            return None
        raise
    row = cursor.fetchone()
    return None if row is None else str(row[0])


def is_ready(cursor: Cursor, name: str, *, migrate: bool) -> bool:
    """Whether a database file is as it must be. Costs two questions, and no lock.

    Args:
        cursor: Of a connection to the file.
        name: What names it in errors.
        migrate: Whether the schema may be brought up to date.

    Raises:
        MigrationRequired: The schema is another, and must not be brought up to date.
    """
    revision = revision_of(cursor)
    if not migrate:
        version.check(revision, name)
    return revision == version.KNOWN[-1] and _journal_mode(cursor, "") == "wal"


def prepare_file(path: str, name: str, nodes: Nodes, *, busy_timeout_ms: int) -> None:
    """Make a database file ready.

    Args:
        path: The file.
        name: What names it in errors.
        nodes: Those of the file.
        busy_timeout_ms: How long to wait for locks.

    Raises:
        MigrationRequired: The schema is unknown, so it cannot be brought up to date.
        StoreUnavailable: Others who do the same take too long.
        StoreError: The file cannot be in WAL mode.
    """
    # The switch to WAL needs the file for itself and does not wait for it, so processes that open a
    # new file at once take turns.
    with closing(connect(path, busy_timeout_ms)) as connection, nodes.opening(OPENING_TIMEOUT_MS):
        cursor = connection.cursor()
        if _journal_mode(cursor, " = WAL") != "wal":
            raise StoreError(f"{name}: its file system does not support SQLite's WAL mode")
        revision = revision_of(cursor)
        if version.can_be_upgraded(revision):
            upgrade_on(connection)
        else:
            version.check(revision, name)


def upgrade_on(connection: sqlite3.Connection) -> None:
    """Bring the schema up to date, in one transaction."""
    # Only here: the two packages take longer to load than a database to open.
    from sqlalchemy import StaticPool, create_engine

    from asm_runtime.stores.sql.migrations import upgrade

    engine = create_engine("sqlite://", creator=lambda: connection, poolclass=StaticPool)
    with engine.connect() as bound:
        begin(connection.cursor())
        upgrade(bound)
        bound.commit()
    engine.dispose(close=False)  # the connection is ours


def _journal_mode(cursor: Cursor, change: str) -> str:
    cursor.execute(f"PRAGMA journal_mode{change}")
    mode: str = cursor.fetchone()[0]
    return mode
