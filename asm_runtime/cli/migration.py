"""The schema of a database, upgraded or downgraded from the shell."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from asm_runtime.cli.exits import ExitCode
from asm_runtime.cli.store_option import checked_url, opened
from asm_runtime.errors import Conflict, StoreError, ValidationError

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["migrate"]


async def migrate(url: str | None, store: str | None, revision: str, *, down: bool, yes: bool) -> ExitCode:
    """Bring a database's tables up to a revision, or back down to it, which removes data."""
    if url and store:
        raise ValidationError("give the database as an argument or with --store, not both")
    where = url or store
    if revision == "head" and not down:
        async with opened(where, create=True):
            return ExitCode.DONE
    checked = checked_url(where, create=False)
    if down and not yes:
        raise ValidationError(f"going back to {revision} removes data: confirm it with --yes")
    await asyncio.to_thread(_step, checked, revision, down=down)
    return ExitCode.DONE


def _step(url: str, revision: str, *, down: bool) -> None:
    """Take the steps, all or none."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    from asm_runtime.stores import migrations

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
    from sqlalchemy.exc import OperationalError

    try:
        connection.exec_driver_sql("PRAGMA busy_timeout = 0")
        connection.exec_driver_sql("PRAGMA journal_mode = DELETE")
    except OperationalError:
        raise Conflict("another process uses the database: stop it first") from None
