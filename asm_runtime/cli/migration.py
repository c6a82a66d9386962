"""The schema of a database, brought up or taken back from the shell."""

from __future__ import annotations

import asyncio

from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

from asm_runtime.cli.exits import ExitCode
from asm_runtime.cli.store_option import store_url
from asm_runtime.errors import StoreError
from asm_runtime.stores import migrations

__all__ = ["migrate"]


async def migrate(where: str | None, revision: str, *, down: bool) -> ExitCode:
    """Bring a database's tables up to a revision, or back down to it."""
    await asyncio.to_thread(_migrate, store_url(where), revision, down=down)
    return ExitCode.DONE


def _migrate(url: str, revision: str, *, down: bool) -> None:
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            (migrations.downgrade if down else migrations.upgrade)(connection, revision)
    except SQLAlchemyError as error:
        raise StoreError(f"cannot migrate {engine.url}: {error}") from error
    finally:
        engine.dispose()
