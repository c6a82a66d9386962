"""What a store leaves behind that ends while its connections are at work."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest

from asm_runtime import Event
from asm_runtime.errors import ActorStopped
from asm_runtime.stores import SQLSessionStore
from asm_runtime.stores.sql.sqlite.connections import FileConnections
from tests.stores.sql.sqlite.inside import connections

GRACE_SECONDS = 0.2
"""How long the readers have for what they must not do."""


@pytest.fixture
def reader_closed(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a connection has closed."""
    done = threading.Event()
    disconnect = FileConnections._disconnect

    def closed(self: FileConnections, connection: sqlite3.Connection) -> None:
        disconnect(self, connection)
        done.set()

    monkeypatch.setattr(FileConnections, "_disconnect", closed)
    return done


async def test_a_crash_while_the_writer_connects_does_not_take_the_log_from_under_it(
    file: str, reader_closed: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    connects = threading.Event()
    connect = FileConnections._connect_writer

    def held_up(self: FileConnections) -> sqlite3.Connection:
        connects.set()
        reader_closed.wait(GRACE_SECONDS)
        return connect(self)

    monkeypatch.setattr(FileConnections, "_connect_writer", held_up)
    store = await SQLSessionStore(f"sqlite:///{file}").start()
    event = Event.new(type="custom", session_id="s")
    append = asyncio.ensure_future(store.append_event(event))
    await asyncio.to_thread(connects.wait)
    store.crash(ValueError("enough"))
    with pytest.raises(ActorStopped):
        await append
    await connections(store).close()
    async with SQLSessionStore(f"sqlite:///{file}") as again:
        assert [one.id for one in await again.get_events("s")] == [event.id]


async def test_a_crashed_store_is_alive_to_others_until_its_last_write_has_ended(
    file: str, tmp_path: Path, reader_closed: threading.Event
) -> None:
    store = await SQLSessionStore(f"sqlite:///{file}").start()
    await store.claim_run("s")  # and so it has joined
    lock = tmp_path / "asm.db-nodes" / store.node_id
    at_work = threading.Event()

    def hold(_: object) -> bool:
        at_work.set()
        reader_closed.wait(GRACE_SECONDS)
        return lock.exists()

    writing = connections(store).write(hold)
    await asyncio.to_thread(at_work.wait)
    store.crash(ValueError("enough"))
    assert await writing
    await connections(store).close()
    assert not await asyncio.to_thread(lock.exists)
