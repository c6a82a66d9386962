"""The schema of a database, upgraded or downgraded from the shell."""

from __future__ import annotations

import asyncio

from asm_runtime.cli.exits import ExitCode
from asm_runtime.cli.store_option import checked_url, opened
from asm_runtime.errors import ValidationError
from asm_runtime.stores.sql.target import migrate_now

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
    await asyncio.to_thread(migrate_now, checked, revision, down=down)
    return ExitCode.DONE
