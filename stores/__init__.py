"""Where sessions live: stores that keep the contract of `asm_runtime.ports.SessionStore`.

`SQLSessionStore` loads SQLAlchemy, and only when that name is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from asm_runtime.stores.memory import InMemorySessionStore

if TYPE_CHECKING:
    from asm_runtime.stores.sql import SQLSessionStore

__all__ = ["InMemorySessionStore", "SQLSessionStore"]


def __getattr__(name: str) -> object:
    if name == "SQLSessionStore":
        from asm_runtime.stores.sql import SQLSessionStore

        return SQLSessionStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
