"""The schema of `SQLSessionStore`, for an application that runs migrations itself.

In one of its own Alembic migrations::

    from alembic import op
    from asm_runtime.stores import migrations

    def upgrade() -> None:
        migrations.upgrade(op.get_bind())

`asm-runtime migrate URL` does the same from the shell.
"""

from __future__ import annotations

from asm_runtime.stores.sql.migrations import downgrade, upgrade

__all__ = ["downgrade", "upgrade"]
