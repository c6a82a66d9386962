"""What is kept beside the logs and queues, so that no question has to count or sort them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest

from asm_runtime import Event, Run, Session
from asm_runtime.errors import AsmError, Conflict, QueueFull
from asm_runtime.ports import ExecutionResult
from asm_runtime.stores import SQLSessionStore
from asm_runtime.stores.sql.rows import text_of
from asm_runtime.stores.sql.sqlite.transaction import Cursor
from tests.stores.sql.sqlite.inside import connections

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
SESSIONS = ("s", "t")


async def rows(store: SQLSessionStore, statement: str) -> list[tuple[Any, ...]]:
    def read(cursor: Cursor) -> list[tuple[Any, ...]]:
        cursor.execute(statement)
        return cursor.fetchall()

    return await connections(store).read(read)


@pytest.mark.parametrize("seed", range(5))
async def test_each_event_knows_the_latest_time_up_to_it(store: SQLSessionStore, seed: int) -> None:
    random = Random(seed)

    def batch() -> list[Event]:
        return [
            Event.new(
                type="custom",
                session_id=random.choice(SESSIONS),
                timestamp=NOON + timedelta(seconds=random.randrange(20)),
            )
            for _ in range(random.randrange(6))
        ]

    known: list[Event] = []
    for _ in range(12):
        batches = [batch() + random.sample(known, min(1, len(known))) for _ in range(3)]
        await asyncio.gather(*(store.append_events(each) for each in batches))
        known += [event for each in batches for event in each]
        if random.random() < 0.1:
            await store.delete_session("t")
            known = [event for event in known if event.session_id != "t"]
    for session_id in SESSIONS:
        latest = ""
        for event in await store.get_events(session_id):
            latest = max(latest, text_of(event.timestamp))
            assert await rows(
                store,
                "SELECT coalesce(later_timestamp, timestamp) FROM asm_events "
                f"WHERE session_id = '{session_id}' AND sequence_number = {event.sequence_number}",
            ) == [(latest,)]
        counter = f"SELECT latest_timestamp FROM asm_session_sequences WHERE session_id = '{session_id}'"
        assert latest == "" or await rows(store, counter) == [(latest,)]


async def test_an_event_that_is_the_latest_so_far_stores_its_time_once(store: SQLSessionStore) -> None:
    await store.append_events([Event.new(type="custom", session_id="s") for _ in range(10)])
    assert await rows(store, "SELECT DISTINCT later_timestamp FROM asm_events") == [(None,)]


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM asm_session_sequences",
        "UPDATE asm_session_sequences SET last_sequence = 1, latest_timestamp = ''",
    ],
)
async def test_the_latest_time_is_found_again_in_the_log(store: SQLSessionStore, damage: str) -> None:
    times = [NOON, NOON + timedelta(hours=1), NOON, NOON + timedelta(minutes=1)]
    log = [Event.new(type="custom", session_id="s", timestamp=at) for at in times]
    await store.append_events(log[:3])
    await connections(store).write(lambda cursor: cursor.execute(damage))
    await store.append_events(log[3:])
    found = await rows(store, "SELECT later_timestamp FROM asm_events ORDER BY sequence_number")
    hour = text_of(NOON + timedelta(hours=1))
    assert found == [(None,), (None,), (hour,), (hour,)]


async def test_each_event_and_the_largest_of_a_log_are_measured(store: SQLSessionStore) -> None:
    random = Random(1)
    for _ in range(20):
        batch = [
            Event.new(
                type="custom",
                session_id=random.choice(SESSIONS),
                data={"text": random.choice("xé\n🙂") * random.randrange(50)},
                metadata=random.choice(({}, {"a": [1, 2.5, None]})),
            )
            for _ in range(random.randrange(4))
        ]
        await asyncio.gather(store.append_events(batch[:1]), store.append_events(batch[1:]))
        if random.random() < 0.1:
            await store.delete_session("t")
        size = "length(CAST(metadata AS BLOB)) + length(CAST(data AS BLOB))"
        assert await rows(store, f"SELECT * FROM asm_events WHERE byte_size != {size}") == []
        largest = await rows(
            store,
            "SELECT c.largest_event, max(e.byte_size) FROM asm_session_sequences c "
            "JOIN asm_events e ON e.session_id = c.session_id GROUP BY c.session_id",
        )
        assert [kept for kept, _ in largest] == [found for _, found in largest]


async def test_of_a_log_whose_counter_was_lost_any_event_may_be_large(store: SQLSessionStore) -> None:
    await store.append_events([Event.new(type="custom", session_id="s", data={"text": "x" * 1000})])
    await connections(store).write(lambda cursor: cursor.execute("DELETE FROM asm_session_sequences"))
    await store.append_events([Event.new(type="custom", session_id="s")])
    ((largest,),) = await rows(store, "SELECT largest_event FROM asm_session_sequences")
    assert largest > 10**9


async def test_a_session_made_anew_is_another_incarnation(store: SQLSessionStore) -> None:
    async def incarnation() -> Any:
        return await rows(store, "SELECT incarnation FROM asm_session_sequences WHERE session_id = 's'")

    await store.append_events([Event.new(type="custom", session_id="s")])
    first = await incarnation()
    await store.append_events([Event.new(type="custom", session_id=id) for id in SESSIONS])
    await store.enqueue_run(Run.new(session_id="s"))
    assert await incarnation() == first
    await store.delete_session("s")
    await store.enqueue_run(Run.new(session_id="s"))
    assert await incarnation() not in ([], first)


@pytest.mark.parametrize("seed", range(5))
async def test_open_runs_are_counted_as_they_come_and_go(store: SQLSessionStore, seed: int) -> None:
    random = Random(seed)

    async def one() -> None:
        session_id = random.choice(SESSIONS)
        asked = Run.new(session_id=session_id, id=str(random.randrange(8)), input={})
        status = random.choice(("pending", "running", "completed", "failed"))
        match random.randrange(10):
            case 0 | 1 | 2:
                await store.enqueue_run(asked, max_open_runs=random.choice((None, 3)))
            case 3:
                await store.save_run(asked.replace(status=status))
            case 4:
                await store.flush(ExecutionResult(run=asked.replace(status=status)))
            case 5 | 6:
                claimed = await store.claim_run(session_id)
                if claimed is not None and random.random() < 0.8:
                    ended = claimed.with_status(random.choice(("completed", "pending", "timeout")))
                    await store.flush(ExecutionResult(run=ended), fence=claimed.fence)
                elif claimed is not None:
                    await store.release_run(claimed.fence)
            case 7:
                await store.append_event(Event.new(type="custom", session_id=session_id))
            case 8:
                claiming = asyncio.create_task(store.claim_run(session_id))
                await asyncio.sleep(0)
                claiming.cancel()  # given back, if it came about
            case _:
                if random.random() < 0.2:
                    await store.delete_session(session_id)

    for _ in range(40):
        outcomes = await asyncio.gather(*(one() for _ in range(5)), return_exceptions=True)
        assert [one for one in outcomes if not isinstance(one, AsmError | None)] == []
        counted = await rows(
            store,
            "SELECT c.open_runs, (SELECT count(*) FROM asm_runs r WHERE r.session_id = c.session_id "
            "AND r.status IN ('pending', 'running')) FROM asm_session_sequences c",
        )
        assert [kept for kept, _ in counted] == [found for _, found in counted]


async def test_a_queue_is_not_filled_past_its_limit_by_one_group(store: SQLSessionStore) -> None:
    outcomes = await asyncio.gather(
        *(store.enqueue_run(Run.new(session_id="s"), max_open_runs=3) for _ in range(7)),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [Run] * 3 + [QueueFull] * 4


async def accept_one_more(store: SQLSessionStore) -> None:
    await store.enqueue_run(Run.new(session_id="s"), max_open_runs=100_000)


async def complete_in_vain(store: SQLSessionStore) -> None:
    done = Session.new(agent_id="a", id="s").with_status("active").with_status("completed")
    with pytest.raises(Conflict):
        await store.flush(ExecutionResult(session=done))


@pytest.mark.parametrize("call", [accept_one_more, complete_in_vain])
async def test_the_cost_of_a_call_does_not_grow_with_the_queue(
    store: SQLSessionStore, call: Callable[[SQLSessionStore], Awaitable[None]]
) -> None:
    async def cost() -> int:
        count = 0

        def step() -> int:
            nonlocal count
            count += 1
            return 0

        def watch(cursor: Any, handler: Any) -> None:
            cursor.connection.set_progress_handler(handler, 1)

        await connections(store).write(watch, step)
        await call(store)
        await connections(store).write(watch, None)
        return count

    await store.enqueue_run(Run.new(session_id="s"))
    few = await cost()
    await asyncio.gather(*(store.enqueue_run(Run.new(session_id="s")) for _ in range(400)))
    assert await cost() == few
