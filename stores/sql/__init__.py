"""Sessions in a SQL database: SQLite today, through a URL or an application's own AsyncEngine."""

from __future__ import annotations

from asm_runtime.stores.sql.store import SQLSessionStore

__all__ = ["SQLSessionStore"]
