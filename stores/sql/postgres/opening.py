"""What a database needs before it can be used: a server that is new enough, and the schema."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import Any

import asyncpg

from asm_runtime.errors import DependencyMissing, StoreError
from asm_runtime.stores.sql import version
from asm_runtime.stores.sql.postgres.connections import Connection, Settings
from asm_runtime.stores.sql.postgres.errors import translating

__all__ = ["prepare"]

OLDEST = 15
"""The first major version with all that the statements use, that is still maintained."""

_MIGRATING = 0x61736D5F
"""The advisory lock of whoever changes the schema."""


async def prepare(settings: Settings, *, migrate: bool) -> None:
    """See that the schema is the one that is needed, or bring it up to date.

    Raises:
        MigrationRequired: It is another, and must not be brought up to date.
        StoreUnavailable: The server cannot be reached.
        StoreError: It is too old, or refuses.
    """
    with translating(settings.name):
        connection = await settings.connect()
        try:
            major = connection.get_server_version().major
            if major < OLDEST:
                raise StoreError(
                    f"{settings.name} is PostgreSQL {major}: {OLDEST} is the oldest that will do"
                )
            revision = await _revision(connection)
            if migrate and version.can_be_upgraded(revision):
                await connection.execute("SELECT pg_advisory_lock($1)", _MIGRATING)
                if version.can_be_upgraded(await _revision(connection)):
                    await _upgrade(settings)
            else:
                version.check(revision, settings.name)
        finally:
            connection.terminate()


async def _revision(connection: Connection) -> str | None:
    try:
        revision: str | None = await connection.fetchval(f"SELECT version_num FROM {version.VERSION_TABLE}")
    except asyncpg.UndefinedTableError:
        return None
    return revision


async def _upgrade(settings: Settings) -> None:
    """Bring the schema up to date, in one transaction."""
    engine, upgrade = await asyncio.to_thread(_engine, settings)
    async with engine.begin() as connection:
        await connection.run_sync(upgrade)
    await engine.dispose()


def _engine(settings: Settings) -> tuple[Any, Any]:
    """For a thread: much is read from the disk."""
    if find_spec("greenlet") is None:
        raise DependencyMissing("a migration needs greenlet: install asm-runtime[postgres]")
    from sqlalchemy import NullPool
    from sqlalchemy.ext.asyncio import create_async_engine

    from asm_runtime.stores.sql import migrations

    migrations.load()
    engine = create_async_engine("postgresql+asyncpg://", async_creator=settings.connect, poolclass=NullPool)
    return engine, migrations.upgrade
