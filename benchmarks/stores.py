"""The stores that are measured, and the raw driver that they are measured by."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from asm_runtime import Event
from asm_runtime.ids import new_id
from asm_runtime.payload import JsonObject
from asm_runtime.stores import InMemorySessionStore, SQLSessionStore

__all__ = ["PAYLOAD", "RawLog", "event", "folder", "memory_store", "sqlite_store"]

PAYLOAD: JsonObject = {"content": "x" * 112}
"""128 bytes of JSON."""

SESSIONS = 16
"""How many logs concurrent appenders write to."""


def event(number: int = 0) -> Event:
    """A new event for one of the logs."""
    return Event.new(type="message_streamed", session_id=f"ses_{number % SESSIONS}", data=PAYLOAD)


@contextmanager
def folder() -> Generator[Path]:
    """A folder on the disk of this checkout: a temporary file system would not sync."""
    path = Path(tempfile.mkdtemp(prefix=".bench-", dir=Path(__file__).parent))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@asynccontextmanager
async def sqlite_store(synchronous: str = "FULL") -> AsyncGenerator[tuple[SQLSessionStore, Path]]:
    """A store on a fresh file, and the file."""
    with folder() as place:
        file = place / "bench.db"
        async with SQLSessionStore(f"sqlite:///{file}", synchronous=synchronous) as store:
            yield store, file


@asynccontextmanager
async def memory_store() -> AsyncGenerator[InMemorySessionStore]:
    """A store in memory."""
    async with InMemorySessionStore() as store:
        yield store


_COLUMNS = (
    "session_id, sequence_number, id, type, run_id, timestamp, data, metadata, schema_version, provider, "
    "correlation_id, byte_size"
)
INSERT = f"INSERT INTO asm_events ({_COLUMNS}) VALUES ({', '.join('?' * 12)})"


class RawLog:
    """The driver itself, on the same tables, indexes and settings, with nothing around it.

    Its rows are made beforehand and number themselves: it does only what no log can do without.
    """

    def __init__(self, file: Path, synchronous: str = "FULL") -> None:
        self.connection = sqlite3.connect(file, isolation_level=None)
        self.connection.execute(f"PRAGMA synchronous = {synchronous}")
        self.connection.execute("PRAGMA wal_autocheckpoint = 4000")
        self._next = 1

    def rows(self, count: int, session: str = "raw") -> list[tuple[object, ...]]:
        """Rows of new events."""
        first, self._next = self._next, self._next + count
        data = '{"content":"' + "x" * 112 + '"}'
        return [
            (
                f"{session}_{number % SESSIONS}", number, new_id("evt_"), "message_streamed", None,
                "2026-01-01T00:00:00.000000Z", data, "{}", 1, None, None, len(data) + 2,
            )
            for number in range(first, first + count)
        ]  # fmt: skip

    def insert(self, rows: list[tuple[object, ...]], per_transaction: int) -> None:
        """Write rows, this many in a transaction."""
        connection = self.connection
        for first in range(0, len(rows), per_transaction):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(INSERT, rows[first : first + per_transaction])
            connection.execute("COMMIT")

    def close(self) -> None:
        """Close it."""
        self.connection.close()
