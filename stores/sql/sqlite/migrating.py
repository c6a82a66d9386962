"""Steps of the schema on a file that no store has open here."""

from __future__ import annotations

from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from asm_runtime.errors import Conflict, StoreError
from asm_runtime.stores.sql import migrations

__all__ = ["migrate_now"]


def migrate_now(url: str, revision: str, *, down: bool) -> None:
    """See `target.migrate_now`."""
    # Python's driver begins no transaction before a change of the schema; so it is told to begin none.
    engine = create_engine(url, connect_args={"isolation_level": None})
    try:
        with engine.connect() as connection:
            if down:
                _check_alone(connection)
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            (migrations.downgrade if down else migrations.upgrade)(connection, revision)
            connection.commit()
    except SQLAlchemyError as error:
        raise StoreError(f"cannot migrate {engine.url}: {error}") from error
    finally:
        engine.dispose()


def _check_alone(connection: Connection) -> None:
    """See that nobody else has the database open: SQLite leaves its WAL mode for a lone connection only.

    The next store that is opened goes back to it.

    Raises:
        Conflict: Somebody has.
    """
    try:
        connection.exec_driver_sql("PRAGMA busy_timeout = 0")
        connection.exec_driver_sql("PRAGMA journal_mode = DELETE")
    except OperationalError:
        raise Conflict("another process uses the database: stop it first") from None
