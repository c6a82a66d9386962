"""Where sessions and artifacts live: stores that keep the contracts of `asm_runtime.ports`.

What needs SQLAlchemy or `obstore` loads it only when its name is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from asm_runtime.stores.artifacts.files import FileArtifactStore
from asm_runtime.stores.memory import InMemorySessionStore

if TYPE_CHECKING:
    from asm_runtime.stores.sql import SQLSessionStore

__all__ = ["FileArtifactStore", "InMemorySessionStore", "SQLSessionStore"]

_ON_DEMAND = {"SQLSessionStore": "asm_runtime.stores.sql"}


def __getattr__(name: str) -> object:
    if name in _ON_DEMAND:
        return getattr(import_module(_ON_DEMAND[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
