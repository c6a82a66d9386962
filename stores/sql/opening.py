"""What a database needs before it can be used: WAL mode and the schema."""

from __future__ import annotations

import sqlite3

from asm_runtime.errors import StoreError
from asm_runtime.stores.sql import version
from asm_runtime.stores.sql.nodes import Nodes

__all__ = ["connect", "prepare_file", "upgrade_on"]

OPENING_TIMEOUT_MS = 60_000
"""How long to wait for other processes that are making the same database ready."""


def connect(path: str, busy_timeout_ms: int) -> sqlite3.Connection:
    """A connection on which transactions begin and end only where it is said."""
    return sqlite3.connect(path, timeout=busy_timeout_ms / 1000, isolation_level=None, cached_statements=256)


def prepare_file(connection: sqlite3.Connection, name: str, nodes: Nodes, *, migrate: bool) -> None:
    """Make a database file ready. One that is costs two questions, and no lock.

    Args:
        connection: To the file.
        name: What names it in errors.
        nodes: Those of the file.
        migrate: Whether to bring the schema up to date.

    Raises:
        MigrationRequired: The schema is another, and must not or cannot be brought up to date.
        StoreUnavailable: Others who do the same take too long.
        StoreError: The file cannot be in WAL mode.
    """
    revision = version.found(connection.cursor())
    if not migrate:
        version.check(revision, name)
    if revision == version.KNOWN[-1] and _journal_mode(connection, "") == "wal":
        return
    # The switch to WAL needs the file for itself and does not wait for it, so processes that open a
    # new file at once take turns.
    with nodes.opening(OPENING_TIMEOUT_MS):
        if _journal_mode(connection, " = WAL") != "wal":
            raise StoreError(f"{name}: its file system does not support SQLite's WAL mode")
        revision = version.found(connection.cursor())
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
        bound.exec_driver_sql("BEGIN IMMEDIATE")
        upgrade(bound)
        bound.commit()
    engine.dispose(close=False)  # the connection is ours


def _journal_mode(connection: sqlite3.Connection, change: str) -> str:
    mode: str = connection.execute(f"PRAGMA journal_mode{change}").fetchone()[0]
    return mode
