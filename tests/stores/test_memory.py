from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from asm_runtime.clock import Clock
from asm_runtime.errors import ActorStopped, RunNotFound, ValidationError
from asm_runtime.records import Event, EventType, Run, RunStatus, Session
from asm_runtime.stores import InMemorySessionStore, memory, memory_log, pace
from asm_runtime.stores.filters import EventFilter
from asm_runtime.stores.memory_log import EventLog
from asm_runtime.tasks import start_task
from asm_runtime.testing import JumpingClock
from asm_runtime.testing.store_conformance import ModelCase


@pytest.fixture
async def store() -> AsyncIterator[InMemorySessionStore]:
    async with InMemorySessionStore(clock=JumpingClock()) as store:
        yield store


def events(count: int, **fields: Any) -> list[Event]:
    given: dict[str, Any] = {"type": "custom", "session_id": "s"} | fields
    return [Event.new(**given) for _ in range(count)]


async def test_a_store_may_have_a_name() -> None:
    assert "mine" in repr(InMemorySessionStore("mine"))
    store = InMemorySessionStore()
    assert store.node_id in repr(store)
    with pytest.raises(ValidationError, match="name"):
        InMemorySessionStore("")


# -- a long read and the loop


async def test_others_are_served_while_a_long_log_is_read(
    store: InMemorySessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "STRETCH_SECONDS", 0)
    await store.append_events(events(1_000))
    reading = asyncio.create_task(store.get_events("s"))
    served = 0
    while not reading.done():
        await store.get_latest_sequence("other")
        served += 1
    assert len(await reading) == 1_000
    assert served >= 300


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_a_long_read_is_a_snapshot(store: InMemorySessionStore, order: Any) -> None:
    for run_id in ("a", "b"):
        await store.append_events(events(1_500, run_id=run_id))
    filters: list[dict[str, Any]] = [{}, {"run_id": ["a", "b"]}, {"type": "custom"}, {"run_id": "b"}]
    reads = [asyncio.create_task(store.get_events("s", order=order, **filter)) for filter in filters]
    await asyncio.sleep(0)
    await store.append_events(events(500, run_id="b"))
    await store.delete_session("s")
    await store.append_events(events(10, run_id="a"))
    expected = [*range(1, 3_001)], [*range(1_501, 3_001)]
    for read, numbers in zip(reads, (expected[0], expected[0], expected[0], expected[1]), strict=True):
        found = [event.sequence_number for event in await read]
        assert found == (numbers if order == "asc" else numbers[::-1])


async def test_an_append_during_a_long_read_that_finds_nothing_wakes_the_reader(
    store: InMemorySessionStore,
) -> None:
    await store.append_events(events(3_000))
    late = store._clock.now() + timedelta(days=10_000)
    reading = start_task(store.get_events("s", since=late, wait_timeout_ms=60_000))
    await asyncio.sleep(0)
    stored = await store.append_events(events(1, timestamp=late + timedelta(seconds=1)))
    assert not reading.done()
    assert await reading == stored


# -- the log


def log_of(given: list[Event]) -> EventLog:
    log = EventLog()
    for event in given:
        log.append(event)
    return log


@pytest.mark.parametrize(
    ("filter", "candidates"),
    [
        (EventFilter(), list(range(1, 13))),
        (EventFilter(after=9), [10, 11, 12]),
        (EventFilter(run_ids=frozenset("c")), [3, 6, 9, 12]),
        (EventFilter(run_ids=frozenset("c"), after=3, before=12), [6, 9]),
        (EventFilter(run_ids=frozenset("ac"), after=6, order="desc"), [12, 10, 9, 7]),
        (EventFilter(run_ids=frozenset("x")), []),
        (EventFilter(types=EventFilter.checked(type="run_started").types), [5]),
        (EventFilter(run_ids=frozenset("abc"), types=EventFilter.checked(type="run_started").types), [5]),
    ],
)
def test_only_what_the_rarer_condition_leaves_is_looked_at(
    filter: EventFilter, candidates: list[int]
) -> None:
    given = [events(1, run_id="abc"[index % 3])[0] for index in range(12)]
    given[4] = given[4].replace(type=Event.new(type="run_started", session_id="s").type)
    log = log_of([*given, *events(30, run_id="later")])  # a short one has no index
    assert list(log.candidates(filter, 12)) == candidates


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_what_matches_is_found_in_a_log_of_any_length(order: Any) -> None:
    types = [EventType.CUSTOM, EventType.RUN_STARTED, EventType.TURN_COMPLETED]
    log = EventLog()
    given: list[Event] = []
    for number in range(100):
        event = events(1, run_id=f"run {number % 13}")[0].replace(type=types[number % 3])
        given.append(event)
        log.append(event)
        assert log.event("s", number + 1) == event.replace(sequence_number=number + 1)
        for run_ids, kinds, after in (
            (["run 3", "run 4"], None, 0),
            (None, types[1:2], 0),
            (["run 3"], types[:2], 2),
        ):
            filter = EventFilter(
                run_ids=None if run_ids is None else frozenset(run_ids),
                types=None if kinds is None else frozenset(kinds),
                after=after,
                order=order,
            )
            wanted = [
                place
                for place, each in enumerate(given, 1)
                if place > after
                and (run_ids is None or each.run_id in run_ids)
                and (kinds is None or each.type in kinds)
            ]
            found = log.matching(log.candidates(filter, len(log)), filter)
            assert found == (wanted if order == "asc" else wanted[::-1])


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_what_is_not_later_is_not_looked_at(order: Any) -> None:
    noon = datetime(2024, 1, 1, 12, tzinfo=UTC)
    times = [noon + timedelta(seconds=number - number % 7) for number in range(1000)]
    log = log_of([events(1, timestamp=time)[0] for time in times])
    assert list(log.candidates(EventFilter(since=times[-1], order=order), 1000)) == []
    for since in (noon - timedelta(days=1), noon, times[500], times[990]):
        filter = EventFilter(since=since, order=order)
        later = [number for number, time in enumerate(times, 1) if time > since]
        looked_at = list(log.candidates(filter, 1000))
        assert len(looked_at) < len(later) + 80
        assert log.matching(looked_at, filter) == (later if order == "asc" else later[::-1])


@pytest.mark.parametrize(
    "id",
    [
        "evt_" + "0" * 32,
        "evt_" + "A" * 32,
        "evt_" + "a" * 31,
        "evt_" + "a" * 33,
        "evt_" + "a " * 16,
        "evt_" + "ab" * 15 + "  ",
        "evt_" + "é" * 32,
        "EVT_" + "a" * 32,
        "\x01" * 16,
    ],
)
def test_an_id_that_looks_like_ours_is_kept_letter_by_letter(id: str) -> None:
    log = log_of(events(1, id=id))
    assert log.event("s", 1).id == id
    assert log.number_of(id) == 1
    assert log.append(events(1, id=id)[0]) is None


async def test_an_event_is_small(store: InMemorySessionStore) -> None:
    count, text = 5_000, "x" * (128 - len('{"text":""}'))
    gc.collect()
    tracemalloc.start()
    for _ in range(count):
        await store.append_event(events(1, run_id="run", provider="p", data={"text": text})[0])
    gc.collect()
    each = tracemalloc.get_traced_memory()[0] / count
    tracemalloc.stop()
    assert each < 330  # measured: 270 to 300; 132 of it are the payload itself


# -- long lists, and what a deleted session leaves


async def served_while(store: InMemorySessionStore, listing: Awaitable[list[Any]]) -> tuple[int, list[Any]]:
    """How often others were answered while something was listed, and what was."""
    task, served = asyncio.ensure_future(listing), 0
    while not task.done():
        await store.get_latest_sequence("other")
        served += 1
    return served, await task


async def test_others_are_served_while_sessions_and_runs_are_listed(
    store: InMemorySessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "STRETCH_SECONDS", 0)
    for number in range(1_000):
        await store.save_session(Session.new(agent_id="a", id=f"s{number}"))
        await store.enqueue_run(Run.new(session_id="s", id=f"r{number}"))
    for listing, found in (
        (store.list_sessions(), 1_000),
        (store.list_sessions(agent_id="nobody"), 0),
        (store.list_sessions(offset=999), 1),
        (store.list_runs("s"), 1_000),
        (store.list_runs("s", status=["pending", "running"]), 1_000),
        (store.list_orphaned_runs(), 0),
    ):
        served, listed = await served_while(store, listing)
        assert (len(listed), served > 20) == (found, True)


async def test_what_a_deleted_session_had_is_forgotten_in_pieces_and_never_seen(
    store: InMemorySessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_SLICE", 10)
    monkeypatch.setattr(memory_log, "_PIECE", 10)
    for number in range(100):
        await store.enqueue_run(Run.new(session_id="s", id=f"r{number}"))
    await store.append_events(events(100))
    gone = store._sessions["s"]
    await store.delete_session("s")
    assert len(store._sessions_of_runs) >= 80
    await store.enqueue_run(Run.new(session_id="s", id="r99"))
    await store.delete_session("s")  # once more, while the first is being forgotten
    with pytest.raises(RunNotFound):
        await store.get_run("r99")
    anew = await store.enqueue_run(Run.new(session_id="s", id="r99"))
    other = await store.enqueue_run(Run.new(session_id="other", id="r98"))
    await store.append_events(events(5))
    while gone.log._rows or len(store._sessions_of_runs) > 2:  # type: ignore[union-attr]  # it has one
        await asyncio.sleep(0)
    assert store._sessions_of_runs == {"r99": ("s",), "r98": ("other",)}
    assert [await store.get_run(run.id) for run in (anew, other)] == [anew, other]
    assert [event.sequence_number for event in await store.get_events("s")] == [1, 2, 3, 4, 5]


async def test_a_log_deleted_while_it_is_read_is_read_to_its_end(
    store: InMemorySessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "STRETCH_SECONDS", 0)
    monkeypatch.setattr(memory_log, "_PIECE", 10)
    stored = await store.append_events(events(500))
    reading = asyncio.create_task(store.get_events("s"))
    while not store._sessions["s"].log._readers:  # type: ignore[union-attr]  # it has one
        await asyncio.sleep(0)
    await store.delete_session("s")
    assert await reading == stored
    assert await store.get_events("s") == []


class TestForgettingInTheSmallestPieces(ModelCase):
    @pytest.fixture(autouse=True)
    def smallest_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(memory, "_SLICE", 1)
        monkeypatch.setattr(memory_log, "_PIECE", 1)

    def new_store(self, clock: Clock, place: Path) -> InMemorySessionStore:
        return InMemorySessionStore(clock=clock)


# -- claims whose caller is gone


async def test_a_claim_cancelled_while_its_large_run_is_copied_is_undone(store: InMemorySessionStore) -> None:
    await store.enqueue_run(Run.new(session_id="s", id="r", input=["x"] * 100_000))
    claim = start_task(store.claim_run("s"))
    while store._get_run("r", "s").status is not RunStatus.RUNNING:
        await asyncio.sleep(0)
    assert not claim.done()
    claim.cancel()
    await asyncio.gather(claim, return_exceptions=True)
    assert (await store.get_run("r")).status == RunStatus.PENDING


async def test_a_claim_cancelled_before_it_is_handled_is_not_made(store: InMemorySessionStore) -> None:
    await store.enqueue_run(Run.new(session_id="s", id="r"))
    claim = start_task(store.claim_run("s"))
    await asyncio.sleep(0)  # its letter lies in the mailbox
    claim.cancel()
    await asyncio.gather(claim, return_exceptions=True)
    assert (await store.get_run("r")).attempt == 0


def when_claimed(
    store: InMemorySessionStore, monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]
) -> None:
    """Call `do` between the claim and its caller's next step."""
    claim = store._claim_run

    def claim_and_do(*arguments: Any) -> None:
        claim(*arguments)
        do()

    monkeypatch.setattr(store, "_claim_run", claim_and_do)


async def test_a_claim_cancelled_when_it_is_made_is_undone(
    store: InMemorySessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.enqueue_run(Run.new(session_id="s", id="r"))
    revision = await store.wait_for_runs("s", timeout_ms=0)
    when_claimed(store, monkeypatch, lambda: asyncio.get_running_loop().call_soon(task.cancel))
    task = asyncio.create_task(store.claim_run("s"))
    with pytest.raises(asyncio.CancelledError):
        await task
    undone = await store.get_run("r")
    assert (undone.status, undone.owner, undone.attempt) == (RunStatus.PENDING, None, 1)
    assert await store.wait_for_runs("s", timeout_ms=0) > revision + 1


async def test_a_claim_that_was_ended_meanwhile_is_not_undone(
    store: InMemorySessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.enqueue_run(Run.new(session_id="s", id="r"))

    def end_it() -> None:
        store._put_run(store._get_run("r", "s").with_status("cancelled"))
        asyncio.get_running_loop().call_soon(task.cancel)

    when_claimed(store, monkeypatch, end_it)
    task = asyncio.create_task(store.claim_run("s"))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await store.get_run("r")).status == RunStatus.CANCELLED


async def test_a_claim_cancelled_while_the_store_is_full_is_undone() -> None:
    store = InMemorySessionStore()
    store._mailbox_limit = 1
    async with store:
        await store.enqueue_run(Run.new(session_id="s", id="r"))
        others = [asyncio.create_task(store.get_latest_sequence("s")) for _ in range(3)]
        claim = asyncio.create_task(store.claim_run("s"))
        while (store._get_run("r", "s")).status is RunStatus.PENDING and not claim.done():
            await asyncio.sleep(0)
        claim.cancel()
        await asyncio.gather(claim, *others, return_exceptions=True)
        assert (await store.get_run("r")).status == RunStatus.PENDING


# -- revisions


async def test_a_session_made_anew_is_noticed_by_who_knew_the_old_one(store: InMemorySessionStore) -> None:
    for index in range(5):
        await store.enqueue_run(Run.new(session_id="s", id=f"{index}"))
    before = await store.wait_for_runs("s", timeout_ms=0)
    await store.delete_session("s")
    deleted = await store.wait_for_runs("s", after=before, timeout_ms=None)
    await store.append_event(events(1)[0])
    assert await store.wait_for_runs("s", timeout_ms=0) >= deleted
    await store.enqueue_run(Run.new(session_id="s", id="r"))
    assert await store.wait_for_runs("s", after=deleted, timeout_ms=None) > deleted


# -- the end


async def test_a_store_that_crashes_answers_who_waits(store: InMemorySessionStore) -> None:
    for_events = asyncio.create_task(store.get_events("s", wait_timeout_ms=60_000))
    for_runs = asyncio.create_task(store.wait_for_runs("s", after=0, timeout_ms=None))
    await store.get_latest_sequence("s")
    await asyncio.sleep(0)
    store.crash(RuntimeError("a test's crash"))
    assert await for_events == []
    assert await for_runs == 0
    with pytest.raises(ActorStopped):
        await store.append_event(events(1)[0])


async def test_rows_are_listed_in_order_after_many_changes(store: InMemorySessionStore) -> None:
    start = store._clock.now()
    for index in range(50):
        for shift in (index, 97 * index % 50):
            moment = start + timedelta(seconds=shift)
            await store.save_session(Session.new(agent_id="a", id=f"{index:02}", created_at=moment))
    for index in range(0, 50, 3):
        await store.delete_session(f"{index:02}")
    listed = await store.list_sessions()
    assert listed == sorted(listed, key=lambda row: (row.created_at, row.id))
    assert {row.id for row in listed} == {f"{index:02}" for index in range(50) if index % 3}
