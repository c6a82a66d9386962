"""A look into a store's database, past its writer and its reader."""

from __future__ import annotations

from asm_runtime.stores import SQLSessionStore
from asm_runtime.stores.sql.sqlite.connections import Connections
from asm_runtime.stores.sql.sqlite.database import SQLiteDatabase

__all__ = ["connections", "database"]


def connections(store: SQLSessionStore) -> Connections:
    """Where jobs can be run on the connections of a store."""
    return database(store).connections


def database(store: SQLSessionStore) -> SQLiteDatabase:
    """The database of a store."""
    assert isinstance(store._database, SQLiteDatabase)
    return store._database
