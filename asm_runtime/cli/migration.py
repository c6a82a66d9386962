"""The schema of a database, upgraded or downgraded from the shell."""

from __future__ import annotations

import asyncio

from asm_runtime.cli.exits import ExitCode
from asm_runtime.cli.store_option import checked_url, is_sqlite, opened
from asm_runtime.errors import ValidationError
from asm_runtime.stores.sql.target import migrate_now

__all__ = ["migrate"]


async def migrate(url: str | None, store: str | None, revision: str, *, down: bool, yes: bool) -> ExitCode:
    """Bring a database's tables up to a revision, or back down to it, which removes data."""
    if url and store:
        raise ValidationError("give the database as an argument or with --store, not both")
    where = url or store
    if revision == "head" and not down:
        async with opened(where, create=True, migrate=True):
            return ExitCode.DONE
    checked = checked_url(where, create=False)
    if not is_sqlite(checked):
        raise ValidationError(
            "on a server this goes to the newest revision only: to another one an Alembic migration takes "
            "it with `asm_runtime.stores.migrations`"
        )
    if down and not yes:
        raise ValidationError(f"going back to {revision} removes data: confirm it with --yes")
    await asyncio.to_thread(migrate_now, checked, revision, down=down)
    return ExitCode.DONE
