"""The log of a deleted session is removed in steps, behind the back of everybody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from asm_runtime import Event
from asm_runtime.clock import Clock
from asm_runtime.ports import Order
from asm_runtime.stores import SQLSessionStore
from asm_runtime.stores.sql import operations, paging
from asm_runtime.testing.store_conformance import ModelCase

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
FILTERS: list[dict[str, Any]] = [
    {},
    {"run_id": "r"},
    {"type": "custom"},
    {"run_id": "r", "type": "custom"},
    {"type": ["custom", "message_streamed"]},
    {"since": NOON - timedelta(hours=1)},
    {"since": NOON - timedelta(hours=1), "run_id": ["r", "q"]},
    {"max_bytes": 10_000},
    {"limit": 7},
]


def events(count: int, session_id: str = "s", **fields: Any) -> list[Event]:
    given: dict[str, Any] = {"type": "custom", "session_id": session_id, "run_id": "r", "timestamp": NOON}
    given |= fields
    return [Event.new(**given) for _ in range(count)]


def numbers(found: list[Event]) -> list[int | None]:
    return [event.sequence_number for event in found]


async def stored_rows(store: SQLSessionStore, table: str = "asm_events") -> list[tuple[Any, ...]]:
    def read(cursor: Any) -> list[tuple[Any, ...]]:
        cursor.execute(f"SELECT * FROM {table} WHERE session_id = 's'")
        return cursor.fetchall()  # type: ignore[no-any-return]  # sqlite3's

    return await store._database.read(read)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "REMOVED_AT_ONCE", 5)


@pytest.fixture
async def second(file: str, store: SQLSessionStore) -> AsyncIterator[SQLSessionStore]:
    async with SQLSessionStore(f"sqlite:///{file}") as second:
        yield second


async def test_when_the_deletion_returns_nothing_is_left(store: SQLSessionStore) -> None:
    await store.append_events(events(42))
    await store.delete_session("s")
    for table in ("asm_events", "asm_removals", "asm_session_sequences"):
        assert await stored_rows(store, table) == []


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_a_session_is_gone_for_every_reader_while_its_log_is_still_there(
    store: SQLSessionStore, second: SQLSessionStore, order: Order
) -> None:
    log = await store.append_events(events(40))
    assert not await store._write(operations.delete_session, "s")
    assert len(await stored_rows(store)) == 35
    for node in (store, second):
        assert await node.get_latest_sequence("s") == 0
        for filter in FILTERS:
            assert await node.get_events("s", order=order, **filter) == []
    # Made anew, with events of the same ids.
    anew = await second.append_events(
        [event.replace(data={"of": "the second"}) for event in (log[30], log[2], log[1])]
    )
    assert numbers(anew) == [1, 2, 3]
    for node in (store, second):
        assert await node.get_latest_sequence("s") == 3
        for filter in FILTERS:
            found = await node.get_events("s", order=order, **filter)
            assert found == (anew if order == "asc" else anew[::-1])
    assert numbers(await store.append_events([anew[1], *events(20)])) == [2, *range(4, 24)]
    await store._removed("s")
    assert len(await stored_rows(store)) == 23
    assert await stored_rows(store, "asm_removals") == []
    assert numbers(await second.get_events("s")) == [*range(1, 24)]


async def test_a_session_deleted_again_while_its_log_is_being_removed_leaves_nothing(
    store: SQLSessionStore,
) -> None:
    for count in (40, 12, 60):
        await store.append_events(events(count))
        assert not await store._write(operations.delete_session, "s")
    assert await store.get_events("s") == []
    await store._removed("s")
    assert await stored_rows(store) == await stored_rows(store, "asm_removals") == []


async def test_a_reader_that_waits_is_not_woken_by_what_is_being_removed(store: SQLSessionStore) -> None:
    await store.append_events(events(40))
    assert not await store._write(operations.delete_session, "s")
    waiting = asyncio.create_task(store.get_events("s", wait_timeout_ms=60_000))
    await store._removed("s")
    assert not waiting.done()
    stored = await store.append_events(events(2))
    assert await waiting == stored


async def test_what_is_left_by_a_process_that_died_is_removed_at_the_next_opening(file: str) -> None:
    async with SQLSessionStore(f"sqlite:///{file}") as store:
        await store.append_events(events(40))
        assert not await store._write(operations.delete_session, "s")
        anew = await store.append_events(events(3))
    async with SQLSessionStore(f"sqlite:///{file}") as store:
        while await stored_rows(store, "asm_removals"):
            await asyncio.sleep(0)
        assert len(await stored_rows(store)) == 3
        assert await store.get_events("s") == anew


async def test_others_write_between_the_steps(store: SQLSessionStore) -> None:
    await store.append_events(events(200))
    deleting = asyncio.create_task(store.delete_session("s"))
    written = 0
    while not deleting.done():
        await store.append_events(events(1, "other"))
        written += 1
    assert written >= 20


async def test_a_step_removes_no_more_bytes_than_it_may(
    store: SQLSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "BYTES_REMOVED_AT_ONCE", 2500)
    await store.append_events(events(8, data={"text": "x" * 1000}) + events(1, data={"text": "x" * 9000}))
    left: list[int] = []
    done = await store._write(operations.delete_session, "s")
    while not done:
        left.append(len(await stored_rows(store)))
        done = await store._write(operations.remove_events, "s")
    assert left == [7, 5, 3, 1]
    assert await stored_rows(store) == []


async def test_a_caller_that_gives_up_leaves_the_removal_to_the_store(store: SQLSessionStore) -> None:
    await store.append_events(events(100))
    deleting = asyncio.create_task(store.delete_session("s"))
    while not store._removals:
        await asyncio.sleep(0)
    deleting.cancel()
    await asyncio.gather(deleting, return_exceptions=True)
    while store._removals:
        await asyncio.sleep(0)
    assert await stored_rows(store) == await stored_rows(store, "asm_removals") == []


async def test_a_store_that_stops_answers_who_deletes_and_leaves_the_rest_for_the_next(file: str) -> None:
    async with SQLSessionStore(f"sqlite:///{file}") as store:
        await store.append_events(events(2000))
        deleting = asyncio.create_task(store.delete_session("s"))
        while not store._removals:
            await asyncio.sleep(0)
    await deleting
    async with SQLSessionStore(f"sqlite:///{file}") as store:
        assert await store.get_events("s") == []


class _Lingering(SQLSessionStore):
    """Leaves what a deleted session had where it is."""

    async def _remove(self, session_id: str) -> None:
        self._removals.pop(session_id, None)


class TestALogThatIsNeverRemovedIsNeverSeen(ModelCase):
    @pytest.fixture(autouse=True)
    def smallest_steps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(operations, "REMOVED_AT_ONCE", 1)

    def new_store(self, clock: Clock, place: Path) -> SQLSessionStore:
        return _Lingering(f"sqlite:///{place}/asm.db", clock=clock)


class TestReadingInTheSmallestPages(ModelCase):
    @pytest.fixture(autouse=True)
    def smallest_pages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(paging, "PAGE_ROWS", 3)
        monkeypatch.setattr(paging, "PAGE_BYTES", 200)
        monkeypatch.setattr(paging, "EXAMINED_AT_FIRST", 2)
        monkeypatch.setattr(paging, "EXAMINED", 4)

    def new_store(self, clock: Clock, place: Path) -> SQLSessionStore:
        return SQLSessionStore(f"sqlite:///{place}/asm.db", clock=clock)
