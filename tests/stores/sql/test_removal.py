"""What a deleted session had is removed in steps, behind the back of everybody."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest

from asm_runtime import Event, Run
from asm_runtime.clock import Clock
from asm_runtime.errors import LeaseLost, QueueFull, RunNotFound, StoreError
from asm_runtime.ports import Order
from asm_runtime.stores import SQLSessionStore
from asm_runtime.stores.sql import operations, paging
from asm_runtime.stores.sql.removals import Removals
from asm_runtime.stores.sql.sqlite import transaction
from asm_runtime.stores.sql.sqlite.transaction import SQLiteTransaction
from asm_runtime.testing import JumpingClock
from asm_runtime.testing.store_conformance import ModelCase
from tests.runtime.support import until
from tests.stores.sql.sqlite.inside import connections
from tests.stores.sql.test_processes import NewNode

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


async def save_runs(store: SQLSessionStore, *ids: str, **fields: Any) -> list[Run]:
    runs = [Run.new(session_id="s", id=id, **fields) for id in ids]
    for run in runs:
        await store.save_run(run)
    return runs


class PatientStore(SQLSessionStore):
    """Lets a test say when it may go on with what deleted sessions have left."""

    is_held = False

    async def _remove_left(self, session_ids: list[str]) -> list[str]:
        await until(lambda: not self.is_held)
        return await super()._remove_left(session_ids)


async def is_deleted(store: PatientStore, session_id: str = "s") -> bool:
    """Delete it, and remove no more than the first step; whether nothing is left."""
    store.is_held = True
    return await store._write(operations.delete_session, session_id)


async def is_removed(store: SQLSessionStore, session_id: str = "s") -> bool:
    """Remove a step more; whether nothing is left."""
    return session_id in await store._write(operations.remove_left, [session_id])


async def stored_rows(store: SQLSessionStore, table: str = "asm_events") -> list[tuple[Any, ...]]:
    def read(cursor: Any) -> list[tuple[Any, ...]]:
        cursor.execute(f"SELECT * FROM {table} WHERE session_id = 's'")
        return cursor.fetchall()  # type: ignore[no-any-return]  # sqlite3's

    return await connections(store).read(read)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction, "REMOVED_AT_ONCE", 5)


@pytest.fixture
async def store(file: str) -> AsyncIterator[PatientStore]:
    async with PatientStore(f"sqlite:///{file}") as store:
        yield store


@pytest.fixture
async def second(file: str, store: PatientStore) -> AsyncIterator[SQLSessionStore]:
    async with SQLSessionStore(f"sqlite:///{file}") as second:
        yield second


async def test_when_the_deletion_returns_nothing_is_left(store: PatientStore) -> None:
    await store.append_events(events(42))
    await save_runs(store, *map(str, range(42)))
    await store.delete_session("s")
    for table in ("asm_events", "asm_runs", "asm_removals", "asm_session_sequences"):
        assert await stored_rows(store, table) == []


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_a_session_is_gone_for_every_reader_while_its_log_is_still_there(
    store: PatientStore, second: SQLSessionStore, order: Order
) -> None:
    log = await store.append_events(events(40))
    assert not await is_deleted(store)
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
    store.is_held = False
    await store._removals.ended("s")
    assert len(await stored_rows(store)) == 23
    assert await stored_rows(store, "asm_removals") == []
    assert numbers(await second.get_events("s")) == [*range(1, 24)]


async def test_a_session_deleted_again_while_its_log_is_being_removed_leaves_nothing(
    store: PatientStore,
) -> None:
    for count in (40, 12, 60):
        await store.append_events(events(count))
        assert not await is_deleted(store)
    assert await store.get_events("s") == []
    store.is_held = False
    await store._removals.ended("s")
    assert await stored_rows(store) == await stored_rows(store, "asm_removals") == []


async def test_a_reader_that_waits_is_not_woken_by_what_is_being_removed(store: PatientStore) -> None:
    await store.append_events(events(40))
    assert not await is_deleted(store)
    waiting = asyncio.create_task(store.get_events("s", wait_timeout_ms=60_000))
    store.is_held = False
    await store._removals.ended("s")
    assert not waiting.done()
    stored = await store.append_events(events(2))
    assert await waiting == stored


async def test_what_is_left_by_a_process_that_died_is_removed_at_the_next_opening(file: str) -> None:
    async with PatientStore(f"sqlite:///{file}") as store:
        await store.append_events(events(40))
        assert not await is_deleted(store)
        anew = await store.append_events(events(3))
    async with SQLSessionStore(f"sqlite:///{file}") as store:
        while await stored_rows(store, "asm_removals"):
            await asyncio.sleep(0)
        assert len(await stored_rows(store)) == 3
        assert await store.get_events("s") == anew


async def test_others_write_between_the_steps(store: PatientStore) -> None:
    await store.append_events(events(200))
    deleting = asyncio.create_task(store.delete_session("s"))
    written = 0
    while not deleting.done():
        await store.append_events(events(1, "other"))
        written += 1
    assert written >= 20


async def test_a_step_removes_no_more_bytes_than_it_may(
    store: PatientStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "BYTES_REMOVED_AT_ONCE", 2500)
    await store.append_events(events(8, data={"text": "x" * 1000}) + events(1, data={"text": "x" * 9000}))
    left: list[int] = []
    done = await is_deleted(store)
    while not done:
        left.append(len(await stored_rows(store)))
        done = await is_removed(store)
    assert left == [7, 5, 3, 1]
    assert await stored_rows(store) == []


async def test_runs_of_a_deleted_session_are_gone_while_their_rows_are_still_there(
    store: PatientStore, second: SQLSessionStore
) -> None:
    await save_runs(store, *(f"r{number}" for number in range(12)), input="old")
    old = await store.claim_run("s")
    assert old is not None
    assert not await is_deleted(store)
    left = len(await stored_rows(store, "asm_runs"))
    assert left == 7
    for node in (store, second):
        assert await node.list_runs("s") == await node.list_orphaned_runs() == []
        assert await node.list_runs("s", status="pending") == []
        assert await node.get_active_run("s") is await node.claim_run("s") is None
        for named in ({"session_id": "s"}, {}):
            with pytest.raises(RunNotFound):
                await node.get_run("r11", **named)
        with pytest.raises(RunNotFound):
            await node.list_runs("s", after="r11")
        with pytest.raises(LeaseLost):
            await node.append_events(events(1), fence=old.fence)
        await node.release_run(old.fence)
    # Made anew, with runs of the same ids, in another order.
    anew = [Run.new(session_id="s", id=id, input="new") for id in ("r11", "x", "r8", "r0")]
    for run in anew:
        assert await second.enqueue_run(run, max_open_runs=4) == run
    with pytest.raises(QueueFull):
        await store.enqueue_run(Run.new(session_id="s", id="y"), max_open_runs=4)
    for node in (store, second):
        assert await node.list_runs("s") == anew
        assert await node.list_runs("s", after="x") == anew[2:]
        assert await node.get_run("r8") == anew[2]
    claimed = await second.claim_run("s", max_concurrent_runs=1)
    assert claimed is not None
    assert (claimed.id, claimed.attempt) == ("r11", 1)
    assert await store.get_active_run("s") == claimed
    store.is_held = False
    await store._removals.ended("s")
    assert await stored_rows(store, "asm_removals") == []
    assert await second.list_runs("s") == [claimed, *anew[1:]]
    assert len(await stored_rows(store, "asm_runs")) == 4


async def test_a_fence_of_a_deleted_session_changes_nothing_of_it(store: PatientStore) -> None:
    await save_runs(store, *"abcdefghij")
    claimed = [await store.claim_run("s") for _ in range(10)]
    assert not await is_deleted(store)
    for run in claimed:
        assert run is not None
        await store.release_run(run.fence)
        store._owe(operations.unclaim_run, run.fence)
    revision = await store.wait_for_runs("s", timeout_ms=0)
    await save_runs(store, "new")
    assert await store.wait_for_runs("s", timeout_ms=0) > revision == 0
    assert [run.id for run in await store.list_runs("s")] == ["new"]


async def test_many_that_are_deleted_at_once_are_removed_in_steps_of_the_same_size(
    store: PatientStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[int] = []
    settle = SQLiteTransaction.settle

    def settled(transaction: SQLiteTransaction) -> int | None:
        removed.append(transaction._removed)
        return settle(transaction)

    monkeypatch.setattr(SQLiteTransaction, "settle", settled)
    names = [f"s{number}" for number in range(40)]
    await asyncio.gather(*(store.append_events(events(3, name)) for name in names))
    await asyncio.gather(*map(store.delete_session, names))
    assert max(removed) == 5
    assert sum(removed) == 120
    assert await asyncio.gather(*map(store.get_events, names)) == [[]] * 40


async def test_two_stores_that_delete_the_same_session_at_once_remove_it_together(
    store: PatientStore, second: SQLSessionStore
) -> None:
    for _ in range(3):
        await store.append_events(events(60))
        await save_runs(store, *map(str, range(20)))
        await asyncio.gather(*(node.delete_session("s") for node in (store, second, store, second)))
        for table in ("asm_events", "asm_runs", "asm_removals"):
            assert await stored_rows(store, table) == []
        assert numbers(await second.append_events(events(2))) == [1, 2]


async def test_a_removal_that_fails_goes_on_by_itself_after_pauses_that_grow(file: str) -> None:
    clock = JumpingClock()
    async with PatientStore(f"sqlite:///{file}", busy_timeout_ms=0, clock=clock) as store:
        await store.append_events(events(40))
        assert not await is_deleted(store)
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        store.is_held = False
        await store._removals.ended("s")  # nobody waits for a database that refuses
        for pause_ms in (1000, 2000, 4000):
            await clock.until_timers()
            await clock.advance_ms(pause_ms - 1)
            assert clock.timers == 1
            await clock.advance_ms(1)
        await clock.until_timers()
        assert len(await stored_rows(store)) == 35
        other.execute("ROLLBACK")
        other.close()
        await clock.advance_ms(8000)
        await until(lambda: not store._removals._task)
        assert await stored_rows(store) == await stored_rows(store, "asm_removals") == []
        assert clock.timers == 0


async def test_one_that_cannot_be_removed_holds_up_no_others() -> None:
    clock, left = JumpingClock(), {"a": 3, "broken": 1, "c": 3}

    async def find(past: str, limit: int) -> list[str]:
        return sorted(id for id in left if id > past)[:limit]

    async def remove(session_ids: list[str]) -> list[str]:
        if "broken" in session_ids:
            raise StoreError("the disk is damaged there")
        for id in session_ids:
            left[id] -= 1
        ended = [id for id in session_ids if not left[id]]
        for id in ended:
            del left[id]
        return ended

    removals = Removals(find=find, remove=remove, spawn=asyncio.create_task, clock=clock)
    removals.begin()
    while len(left) > 1:
        await clock.jump()
    assert left == {"broken": 1}
    assert removals._task is not None
    removals._task.cancel()


async def test_one_with_much_to_remove_holds_up_no_others() -> None:
    left = {"much": 50, "a little": 3}

    async def find(past: str, limit: int) -> list[str]:
        return []

    async def remove(session_ids: list[str]) -> list[str]:
        await asyncio.sleep(0)
        left[session_ids[0]] -= 1  # it takes all that a step can do
        return [id for id in session_ids if left[id] <= 0]

    removals = Removals(find=find, remove=remove, spawn=asyncio.create_task, clock=JumpingClock())
    much = asyncio.create_task(removals.ended("much"))
    await asyncio.sleep(0)
    await removals.ended("a little")
    assert left["much"] > 40
    await much
    assert left["much"] == 0


async def test_a_removal_cancelled_before_its_first_step_lets_callers_go() -> None:
    async def find(past: str, limit: int) -> list[str]:
        return []

    async def remove(session_ids: list[str]) -> list[str]:
        return session_ids

    removals = Removals(find=find, remove=remove, spawn=asyncio.create_task, clock=JumpingClock())
    for cancelled in (True, False):
        waiting = asyncio.create_task(removals.ended("s"))
        await asyncio.sleep(0)
        if cancelled and removals._task is not None:
            removals._task.cancel()  # as the end of the store does
        await waiting
        await until(lambda: not removals._task)


async def test_what_a_process_left_that_was_killed_in_the_middle_is_never_seen_and_removed(
    file: str, store: PatientStore, node: NewNode
) -> None:
    """By a store that is open, which notices; and by one that is opened."""
    for noticed in (True, False):
        await store.append_events(events(60))
        await save_runs(store, *map(str, range(20)))
        victim = await node("delete-and-die", "s", "5", "4")
        assert await victim.process.wait() == -signal.SIGKILL
        assert len(await stored_rows(store)) == 40
        assert (await store.get_events("s"), await store.list_runs("s")) == ([], [])
        assert await store.get_latest_sequence("s") == 0
        assert await store.claim_run("s") is None
        anew = await store.append_events(events(2))
        assert numbers(anew) == [1, 2]
        runs = await save_runs(store, "19")
        if noticed:
            while await stored_rows(store, "asm_removals"):
                await store.append_events(events(1, "other"))
        else:
            async with SQLSessionStore(f"sqlite:///{file}") as opened:
                while await stored_rows(opened, "asm_removals"):
                    await asyncio.sleep(0.001)
        assert len(await stored_rows(store)) == 2
        assert len(await stored_rows(store, "asm_runs")) == 1
        assert await store.get_events("s") == anew
        assert await store.list_runs("s") == runs
        await store.delete_session("s")


async def test_a_deletion_cancelled_at_any_turn_is_done_or_not_begun(store: PatientStore) -> None:
    outcomes: set[int] = set()
    for turns in range(40):
        log = await store.append_events(events(30))
        runs = await save_runs(store, *map(str, range(10)))
        deleting = asyncio.create_task(store.delete_session("s"))
        for _ in range(turns):
            await asyncio.sleep(0.0002 if turns > 10 else 0)
        deleting.cancel()
        await asyncio.gather(deleting, return_exceptions=True)
        await store.append_events(events(1, "other"))  # now it is settled which
        found = await store.get_events("s")
        assert found in ([], log)
        assert await store.list_runs("s") == (runs if found else [])
        outcomes.add(len(found))
        await until(lambda: not store._removals._task)
        assert len(await stored_rows(store)) == len(found)
        assert len(await stored_rows(store, "asm_runs")) == (10 if found else 0)
        await store.delete_session("s")
    assert outcomes == {0, 30}


async def test_a_caller_that_gives_up_leaves_the_removal_to_the_store(store: PatientStore) -> None:
    await store.append_events(events(100))
    deleting = asyncio.create_task(store.delete_session("s"))
    while not store._removals._answers:
        await asyncio.sleep(0)
    deleting.cancel()
    await asyncio.gather(deleting, return_exceptions=True)
    while store._removals._task:
        await asyncio.sleep(0)
    assert await stored_rows(store) == await stored_rows(store, "asm_removals") == []


async def test_a_store_that_stops_answers_who_deletes_and_leaves_the_rest_for_the_next(file: str) -> None:
    async with SQLSessionStore(f"sqlite:///{file}") as store:
        await store.append_events(events(2000))
        deleting = asyncio.create_task(store.delete_session("s"))
        while not store._removals._answers:
            await asyncio.sleep(0)
    await deleting
    async with SQLSessionStore(f"sqlite:///{file}") as store:
        assert await store.get_events("s") == []


class _Lingering(SQLSessionStore):
    """Leaves what a deleted session had where it is."""

    async def _find_left(self, past: str, limit: int) -> list[str]:
        return []

    async def _remove_left(self, session_ids: list[str]) -> list[str]:
        return session_ids


class TestWhatIsNeverRemovedIsNeverSeen(ModelCase):
    @pytest.fixture(autouse=True)
    def smallest_steps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transaction, "REMOVED_AT_ONCE", 1)

    def new_store(self, clock: Clock, place: Path) -> SQLSessionStore:
        return _Lingering(f"sqlite:///{place}/asm.db", clock=clock)


class _Either:
    """Each call goes to one of two stores on the same file, by chance."""

    def __init__(self, *stores: SQLSessionStore) -> None:
        self._stores = stores
        self._random = Random(1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._random.choice(self._stores), name)

    async def __aenter__(self) -> _Either:
        for store in self._stores:
            await store.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for store in self._stores:
            await store.stop()


class TestTwoStoresThatRemoveWhatEitherDeletes(ModelCase):
    @pytest.fixture(autouse=True)
    def small_steps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transaction, "REMOVED_AT_ONCE", 7)

    def new_store(self, clock: Clock, place: Path) -> Any:
        url = f"sqlite:///{place}/asm.db"
        stores = [SQLSessionStore(url, synchronous="NORMAL", clock=clock) for _ in range(2)]
        return _Either(*stores)


class TestReadingInTheSmallestPages(ModelCase):
    @pytest.fixture(autouse=True)
    def smallest_pages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(paging, "PAGE_ROWS", 3)
        monkeypatch.setattr(paging, "PAGE_BYTES", 200)
        monkeypatch.setattr(paging, "EXAMINED_AT_FIRST", 2)
        monkeypatch.setattr(paging, "EXAMINED", 4)

    def new_store(self, clock: Clock, place: Path) -> SQLSessionStore:
        return SQLSessionStore(f"sqlite:///{place}/asm.db", clock=clock)
