"""The steps of the schema, applied with Alembic but without any of its files or settings.

The version is kept in a table of its own, `asm_schema_version`: an application's own Alembic keeps
its table, and calls `upgrade` from one of its migrations.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from asm_runtime import options
from asm_runtime.stores.sql.version import VERSION_TABLE

__all__ = ["downgrade", "load", "upgrade"]


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the tables up to a revision, inside the connection's transaction.

    To be called from an application's own Alembic migration with `op.get_bind()`, or on a
    connection of its own. The caller commits the transaction.

    Args:
        connection: The database. With an AsyncConnection: `await connection.run_sync(upgrade)`.
        revision: The revision to reach; `head` is what this release needs.

    Raises:
        ValidationError: There is no such revision on the way up from the present one.
    """
    script = _script()

    def steps(current: Any, _: Any) -> Any:
        return script._upgrade_revs(revision, current)

    _run(connection, revision, steps)


def downgrade(connection: Connection, revision: str) -> None:
    """Take the tables back to a revision, inside the connection's transaction; `base` drops them all.

    Args:
        connection: The database.
        revision: The revision to go back to.

    Raises:
        ValidationError: There is no such revision on the way down from the present one.
    """
    script = _script()

    def steps(current: Any, _: Any) -> Any:
        return script._downgrade_revs(revision, current)

    _run(connection, revision, steps)


def load() -> None:
    """Read the scripts from the disk, once. For who must not do that on an event loop."""
    _script().get_heads()


@cache
def _script() -> ScriptDirectory:
    return ScriptDirectory(str(Path(__file__).parent))


def _run(connection: Connection, revision: str, steps: Any) -> None:
    if not connection.in_transaction():
        connection.begin()  # the caller commits; Alembic must not, step by step
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "fn": steps})
    try:
        # The steps are given their operations as an argument. Alembic's global `op` would be taken
        # from the application whose own migration may be calling this.
        context.run_migrations(op=Operations(context))
    except CommandError as error:
        raise options.refused("revision", revision, f"a revision of this schema ({error})") from error
