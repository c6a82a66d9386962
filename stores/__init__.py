"""Where sessions and artifacts live: stores that keep the contracts of `asm_runtime.ports`.

What needs SQLAlchemy or `obstore` loads it only when its name is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from asm_runtime.stores.artifacts.files import FileArtifactStore
from asm_runtime.stores.composite import CompositeSessionStore
from asm_runtime.stores.memory import InMemorySessionStore
from asm_runtime.stores.memory_artifacts import InMemoryArtifactRegistry

if TYPE_CHECKING:
    from asm_runtime.stores.artifacts.objects import ObjectArtifactStore
    from asm_runtime.stores.sql import SQLSessionStore
    from asm_runtime.stores.sql.artifacts import ArtifactRegistry

__all__ = [
    "ArtifactRegistry",
    "CompositeSessionStore",
    "FileArtifactStore",
    "InMemoryArtifactRegistry",
    "InMemorySessionStore",
    "ObjectArtifactStore",
    "SQLSessionStore",
]

_ON_DEMAND = {
    "ArtifactRegistry": "asm_runtime.stores.sql.artifacts",
    "ObjectArtifactStore": "asm_runtime.stores.artifacts.objects",
    "SQLSessionStore": "asm_runtime.stores.sql",
}


def __getattr__(name: str) -> object:
    if name in _ON_DEMAND:
        return getattr(import_module(_ON_DEMAND[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
