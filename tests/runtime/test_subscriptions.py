"""Subscriptions: every matching stored event exactly once, ascending, whatever happens."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import Counter
from typing import Any

import pytest

from asm_runtime import Event, SessionManager, SessionServer
from asm_runtime.adapters import ScriptedAdapter
from asm_runtime.adapters.scripted import Gate, tokens
from asm_runtime.errors import ActorStopped, StoreError, ValidationError
from asm_runtime.ports import SessionStore
from asm_runtime.records import Session
from asm_runtime.runtime.subscription import BUFFER_BYTES, PAGE_SIZE, TURN_SIZE, Subscription
from asm_runtime.stores import InMemorySessionStore
from asm_runtime.testing import JumpingClock
from tests.runtime.faulty import FaultyStore
from tests.runtime.support import open_server, until


def events_of(session_id: str, count: int) -> list[Event]:
    return [Event.new(type="custom", session_id=session_id) for _ in range(count)]


async def append(store: SessionStore, session_id: str, count: int) -> None:
    for first in range(0, count, 1000):
        await store.append_events(events_of(session_id, min(1000, count - first)))


async def read(subscription: Subscription, last: int) -> list[int]:
    """The numbers that are delivered, up to that one."""
    numbers: list[int] = []
    async with subscription:
        async for event in subscription:
            numbers.append(event.sequence_number or 0)
            if event.sequence_number == last:
                break
    return numbers


async def test_a_long_backlog_is_delivered_whole(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter()) as server:
        await append(store, server.session_id, 24_998)
        assert await read(server.subscribe(), 25_000) == list(range(1, 25_001))


async def test_a_burst_is_delivered_whole(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter([tokens(10_000)])) as server:
        reading = asyncio.create_task(read(server.subscribe(), 10_004))
        await server.execute_run({})
        assert await reading == list(range(1, 10_005))


async def test_a_late_subscriber_gets_no_duplicates_from_the_next_run(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter([tokens(5)])) as server:
        await server.execute_run({})
        subscription = server.subscribe()
        reading = asyncio.create_task(read(subscription, 16))
        await until(lambda: subscription.cursor == 9)
        await server.execute_run({})
        assert await reading == list(range(1, 17))


async def test_events_that_somebody_else_appends_are_delivered(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter()) as server:
        subscription = server.subscribe()
        reading = asyncio.create_task(read(subscription, 102))
        await until(lambda: subscription.cursor == 2)
        for _ in range(100):
            await store.append_event(events_of(server.session_id, 1)[0])
        assert await reading == list(range(1, 103))


async def test_a_slow_reader_is_bounded_and_loses_nothing(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter()) as server:
        subscription = server.subscribe(buffer=10)
        numbers: list[int] = []
        async with subscription:
            async for event in subscription:
                numbers.append(event.sequence_number or 0)
                if len(numbers) == 2:
                    break
            for _ in range(30):
                await append(store, server.session_id, 7)
                assert len(subscription._buffer) + len(subscription._page) <= 20
                numbers.append((await anext(subscription)).sequence_number or 0)
            async for event in subscription:
                numbers.append(event.sequence_number or 0)
                if event.sequence_number == 212:
                    break
        assert numbers == list(range(1, 213))


async def test_a_slow_reader_is_bounded_in_bytes_too(store: SessionStore) -> None:
    megabyte = {"text": "x" * 2**20}
    most = BUFFER_BYTES // 2**20 + 3
    async with await open_server(store, ScriptedAdapter()) as server:
        subscription = server.subscribe(after=2)
        reading = asyncio.create_task(anext(subscription))
        await until(lambda: not subscription._behind)
        for number in range(3, 33):
            await store.append_event(Event.new(type="custom", session_id=server.session_id, data=megabyte))
            await until(lambda number=number: server._readers_here()._running_feed().position >= number)  # type: ignore[misc]
            assert len(subscription._buffer) <= most
        assert subscription._overflowed
        assert (await reading).sequence_number == 3
        assert await read(subscription, 32) == list(range(4, 33))


async def test_readers_of_many_kinds_see_the_same_log(store: SessionStore) -> None:
    adapter = ScriptedAdapter([tokens(200)])
    async with await open_server(store, adapter, max_concurrent_runs=3) as server:
        sizes = (1, 2, 7, 100, 1024)
        readers = [asyncio.create_task(read(server.subscribe(buffer=size), 2 + 5 * 202)) for size in sizes]
        await asyncio.gather(*(server.execute_run({}) for _ in range(5)))
        for reader in readers:
            assert await reader == list(range(1, 2 + 5 * 202 + 1))


async def test_subscribing_at_any_moment_misses_and_repeats_nothing(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter([tokens(300)])) as server:
        running = asyncio.create_task(server.execute_run({}))
        readers: list[asyncio.Task[list[int]]] = []
        while not running.done():
            readers.append(asyncio.create_task(read(server.subscribe(buffer=16), 304)))
            for _ in range(5):
                await asyncio.sleep(0)
            if len(readers) == 40:
                await running
        for reader in readers:
            assert await reader == list(range(1, 305))


async def test_from_sequence_is_inclusive_and_after_exclusive(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter()) as server:
        await append(store, server.session_id, 8)
        assert await read(server.subscribe(from_sequence=7), 10) == [7, 8, 9, 10]
        assert await read(server.subscribe(from_sequence=1), 2) == [1, 2]
        assert await read(server.subscribe(from_sequence=0), 2) == [1, 2]
        assert await read(server.subscribe(after=7), 10) == [8, 9, 10]
        assert await read(server.subscribe(after=0), 1) == [1]


async def test_a_reader_that_left_resumes_at_its_cursor(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter([tokens(20)])) as server:
        await server.execute_run({})
        first = server.subscribe()
        numbers = await read(first, 11)
        numbers += await read(server.subscribe(after=first.cursor), 24)
        assert numbers == list(range(1, 25))


async def test_a_position_beyond_the_end_waits_for_it(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter()) as server:
        subscription = server.subscribe(from_sequence=6)
        reading = asyncio.create_task(read(subscription, 7))
        await until(lambda: not subscription._behind)
        await append(store, server.session_id, 5)
        assert await reading == [6, 7]


async def test_filters_hold_in_the_backlog_and_live(store: SessionStore) -> None:
    gate = Gate()
    adapter = ScriptedAdapter([tokens(2), gate, tokens(2)])
    async with await open_server(store, adapter, max_concurrent_runs=2) as server:
        first, second = await server.submit_run({}), await server.submit_run({})
        await gate.reached(2)
        of_run = server.subscribe(run_id=second)
        of_types = server.subscribe(type=["run_started", "run_completed"])
        seen_run: list[Event] = []
        seen_types: list[Event] = []

        async def follow(subscription: Subscription, seen: list[Event], count: int) -> None:
            async for event in subscription:
                seen.append(event)
                if len(seen) == count:
                    return

        readers = [
            asyncio.create_task(follow(of_run, seen_run, 6)),
            asyncio.create_task(follow(of_types, seen_types, 4)),
        ]
        await until(lambda: len(seen_types) == 2)
        gate.open()
        await asyncio.gather(*readers)
        assert {event.run_id for event in seen_run} == {second}
        assert [str(event.type) for event in seen_types] == ["run_started"] * 2 + ["run_completed"] * 2
        assert {event.run_id for event in seen_types} == {first, second}
        of_run.unsubscribe()
        of_types.unsubscribe()


async def test_leaving_ends_the_iteration_at_once(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter()) as server:
        subscription = server.subscribe(from_sequence=3)
        assert server.status().subscribers == 1
        reading = asyncio.create_task(read(subscription, 99))
        await until(lambda: not subscription._behind)
        server.unsubscribe(subscription)
        server.unsubscribe(subscription)
        assert await reading == []
        assert server.status().subscribers == 0


async def test_a_forgotten_subscription_costs_nothing(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter()) as server:
        for _ in range(5):
            server.subscribe()
        assert server.status().subscribers == 0


async def test_results_do_not_arrive_before_their_events(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter([tokens(20)])) as server:
        subscription = server.subscribe()
        seen: list[Event] = []

        async def follow() -> None:
            async for event in subscription:
                seen.append(event)

        reading = asyncio.create_task(follow())
        await until(lambda: len(seen) == 2 and not subscription._behind)
        for _ in range(30):
            result = await server.execute_run({})
            available = [*seen, *subscription._page, *subscription._buffer]
            if not subscription._overflowed:
                assert available[-1].sequence_number is not None
                assert available[-1].sequence_number >= result.last_sequence_number
        subscription.unsubscribe()
        await reading


class LateFeed(FaultyStore):
    """Long polls are answered when that is allowed."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.allowed = asyncio.Event()

    async def get_events(self, *args: Any, wait_timeout_ms: int = 0, **options: Any) -> list[Event]:
        events: list[Event] = await self.store.get_events(*args, wait_timeout_ms=wait_timeout_ms, **options)
        if wait_timeout_ms:
            await self.allowed.wait()
        return events


@pytest.mark.parametrize("executed", ["here", "elsewhere"])
async def test_a_result_does_not_arrive_before_a_late_feed(store: SessionStore, executed: str) -> None:
    late: Any = LateFeed(store)
    async with (
        await open_server(store, ScriptedAdapter([tokens(2)])) as elsewhere,
        SessionServer(
            store=late, adapter=ScriptedAdapter([tokens(2)]), session_id=elsewhere.session_id
        ) as server,
    ):
        executor = server if executed == "here" else elsewhere
        await (elsewhere if executed == "here" else server).drain(queued="leave")
        subscription = server.subscribe(after=2)
        reading = asyncio.create_task(anext(subscription))
        await until(lambda: not subscription._behind)
        run_id = await executor.submit_run({})
        if executed == "elsewhere":
            await elsewhere.await_run(run_id)
        waiting = asyncio.create_task(server.await_run(run_id))
        await until(lambda: server._readers_here()._running_feed()._waiting or waiting.done())
        assert not waiting.done()
        late.allowed.set()
        result = await waiting
        assert subscription._buffer[-1].sequence_number == result.last_sequence_number
        await reading


async def test_the_task_that_reads_may_also_wait_for_results(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter([tokens(100)])) as server:
        events = server.subscribe(buffer=2)
        await anext(events)
        result = await server.execute_run({})
        assert result.last_sequence_number == 104
        assert await read(events, 104) == list(range(2, 105))


async def test_a_stop_delivers_what_is_stored_up_to_it(store: SessionStore) -> None:
    server = await open_server(store, ScriptedAdapter([tokens(50)]))
    await server.execute_run({})
    fresh, slow = server.subscribe(), server.subscribe(buffer=3)
    await anext(slow)
    waiting = server.subscribe(after=54)
    reading = asyncio.create_task(read(waiting, 99))
    await until(lambda: not waiting._behind)
    await server.stop()
    assert await reading == []
    assert await read(fresh, 99) == list(range(1, 55))
    assert await read(slow, 99) == list(range(2, 55))


async def test_a_crash_is_told_and_the_reader_resumes_on_the_successor(store: SessionStore) -> None:
    server = await open_server(store, ScriptedAdapter([tokens(5)]))
    await server.execute_run({})
    subscription = server.subscribe()
    numbers = [(await anext(subscription)).sequence_number for _ in range(4)]
    server.crash(RuntimeError("for the test"))
    with pytest.raises(ActorStopped):
        await anext(subscription)
    async with SessionServer(
        store=store, adapter=ScriptedAdapter(), session_id=server.session_id
    ) as successor:
        numbers += await read(successor.subscribe(after=subscription.cursor), 9)
    assert numbers == list(range(1, 10))


async def test_subscriptions_end_when_their_session_is_deleted(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter()) as server:
        subscription = server.subscribe()
        reading = asyncio.create_task(read(subscription, 99))
        await until(lambda: subscription.cursor == 2 and not subscription._behind)
        await store.delete_session(server.session_id)
        assert await reading == [1, 2]


@pytest.mark.parametrize("turns", range(1, 25))
async def test_a_reader_cancelled_at_any_await_loses_nothing(store: SessionStore, turns: int) -> None:
    async with await open_server(store, ScriptedAdapter()) as server:
        await append(store, server.session_id, 30)
        subscription = server.subscribe(buffer=4)
        numbers: list[int] = []

        async def follow() -> None:
            async for event in subscription:
                numbers.append(event.sequence_number or 0)
                if event.sequence_number == 33:
                    return

        while 33 not in numbers:
            reading = asyncio.create_task(follow())
            for _ in range(turns):
                await asyncio.sleep(0)
            if len(numbers) >= 32 and numbers[-1] == 32:
                await append(store, server.session_id, 1)
            reading.cancel()
            await asyncio.wait([reading])
            turns += 1
        assert numbers == list(range(1, 34))
        subscription.unsubscribe()


async def test_two_tasks_cannot_read_one_subscription(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter()) as server:
        subscription = server.subscribe(after=2)
        first = asyncio.create_task(read(subscription, 99))
        await until(lambda: not subscription._behind)
        with pytest.raises(RuntimeError):
            await anext(subscription)
        subscription.unsubscribe()
        await first


async def test_bad_arguments_are_refused(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter()) as server:
        many: list[Any] = [
            {"from_sequence": -1},
            {"from_sequence": "1"},
            {"after": -1},
            {"from_sequence": 2, "after": 1},
            {"buffer": 0},
            {"type": "nonsense"},
            {"run_id": ""},
        ]
        for bad in many:
            with pytest.raises(ValidationError):
                server.subscribe(**bad)


async def test_the_feed_rests_when_nobody_reads(store: SessionStore) -> None:
    clock = JumpingClock()
    async with await open_server(store, ScriptedAdapter(), clock=clock) as server:
        readers = server._readers_here()
        assert readers._feed_task is None
        assert await read(server.subscribe(), 2) == [1, 2]
        assert readers._feed_task is not None
        await clock.advance_ms(1_000)
        assert readers._feed_task is None
        assert await read(server.subscribe(), 2) == [1, 2]


async def test_what_is_stored_while_a_page_is_on_its_way_is_delivered_before_the_stop(
    store: SessionStore,
) -> None:
    """The page was read, empty, before the events came; its answer comes after the stop."""
    faulty = FaultyStore(store)
    server = await open_server(faulty, ScriptedAdapter())
    subscription = server.subscribe(after=2)
    faulty.late.add("get_events")
    reading = asyncio.create_task(read(subscription, 99))
    await until(lambda: faulty.held["get_events"])  # the feed's long poll has no answer yet
    await append(store, server.session_id, 3)
    await server.stop()
    faulty.heal()
    assert await reading == [3, 4, 5]


async def test_a_reader_that_the_stop_meets_in_its_backfill_gets_all_in_order(store: SessionStore) -> None:
    """What it was handed live lies beyond what it has still to read."""
    faulty = FaultyStore(store)
    server = await open_server(faulty, ScriptedAdapter())
    await append(store, server.session_id, 18)  # more than the page that is on its way
    subscription = server.subscribe(buffer=5)
    await anext(subscription)
    faulty.hanging.add("get_events")
    reading = asyncio.create_task(read(subscription, 99))
    await until(lambda: len(subscription._page) == 0 and faulty.calls["get_events"] >= 3)
    assert subscription._behind
    assert subscription._feed is not None
    live = await store.append_events(events_of(server.session_id, 3))
    subscription.offer(live, lambda: [1] * len(live))
    await server.stop()
    faulty.heal()
    assert await reading == list(range(2, 24))


async def crowd_of(server: SessionServer, count: int, got: Counter[str]) -> list[asyncio.Task[None]]:
    """Readers of that server that have caught up."""
    subscriptions = [server.subscribe(after=2) for _ in range(count)]

    async def receive(subscription: Subscription) -> None:
        try:
            async for _ in subscription:
                got["events"] += 1
        except ActorStopped:
            got["crashes"] += 1
        got["ends"] += 1

    reading = [asyncio.create_task(receive(subscription)) for subscription in subscriptions]
    await until(lambda: not any(subscription._behind for subscription in subscriptions))
    return reading


async def most_a_turn(got: Counter[str], what: str, count: int) -> int:
    """How many of them there are at most between two turns of the loop, until there are all."""
    most = 0
    while got[what] < count:
        before = got[what]
        await asyncio.sleep(0)
        most = max(most, got[what] - before)
    return most


async def test_one_event_for_many_gives_the_loop_its_turns(store: SessionStore) -> None:
    got: Counter[str] = Counter()
    async with await open_server(store, ScriptedAdapter()) as server:
        await crowd_of(server, 600, got)
        await append(store, server.session_id, 1)
        assert await most_a_turn(got, "events", 600) < 300


@pytest.mark.parametrize("end", ["stop", "crash", "deletion", "the store's stop"])
async def test_the_end_of_many_readers_gives_the_loop_its_turns(end: str) -> None:
    got: Counter[str] = Counter()
    async with InMemorySessionStore() as store:
        server = await open_server(store, ScriptedAdapter())
        readers = await crowd_of(server, 600, got)
        if end == "stop":
            ending = asyncio.create_task(server.stop())
        elif end == "crash":
            server.crash(RuntimeError("as told"))
            ending = asyncio.create_task(server.stop())
        elif end == "deletion":
            ending = asyncio.create_task(store.delete_session(server.session_id))
        else:
            ending = asyncio.create_task(store.stop())
        assert await most_a_turn(got, "ends", 600) < 300
        assert got["crashes"] == (600 if end in ("crash", "the store's stop") else 0)
        await asyncio.gather(ending, *readers)
        await server.stop()


async def test_handing_out_to_many_gives_the_loop_its_turns(store: SessionStore) -> None:
    readers, burst = 200, 300
    received = 0
    most = 0
    async with await open_server(store, ScriptedAdapter()) as server:
        subscriptions = [server.subscribe(after=2, buffer=burst) for _ in range(readers)]

        async def receive(subscription: Subscription) -> None:
            nonlocal received
            async for _ in subscription:
                received += 1

        reading = [asyncio.create_task(receive(subscription)) for subscription in subscriptions]
        await until(lambda: not any(subscription._behind for subscription in subscriptions))
        await append(store, server.session_id, burst)
        while received < readers * burst:
            before = received
            await asyncio.sleep(0)
            most = max(most, received - before)
        assert 0 < most <= 2 * TURN_SIZE
        for subscription in subscriptions:
            subscription.unsubscribe()
        await asyncio.gather(*reading)


async def test_a_reader_with_much_at_hand_gives_way_now_and_then(store: SessionStore) -> None:
    received = most = 0
    async with await open_server(store, ScriptedAdapter()) as server:
        subscription = server.subscribe(after=2, buffer=10_000)
        reading = asyncio.create_task(anext(subscription))
        await until(lambda: not subscription._behind)
        await append(store, server.session_id, 5_000)
        await until(lambda: len(subscription._buffer) >= 4_999)
        await reading

        async def receive() -> None:
            nonlocal received
            async for event in subscription:
                received += 1
                if event.sequence_number == 5_002:
                    return

        receiving = asyncio.create_task(receive())
        while not receiving.done():
            before = received
            await asyncio.sleep(0)
            most = max(most, received - before)
        assert received == 4_999
        assert most <= PAGE_SIZE
        subscription.unsubscribe()


async def test_a_subscription_that_is_dropped_half_read_is_let_go(store: SessionStore) -> None:
    clock = JumpingClock()
    async with await open_server(store, ScriptedAdapter(), clock=clock) as server:
        subscription = server.subscribe(buffer=4)
        await anext(subscription)
        await anext(subscription)
        reading = asyncio.create_task(anext(subscription))
        dropped = weakref.ref(subscription)
        await until(lambda: _waiting_readers(server))
        reading.cancel()
        await asyncio.wait([reading])
        del subscription, reading
        gc.collect()
        assert dropped() is None
        assert server.status().subscribers == 0
        await append(store, server.session_id, 1)  # the feed looks, and finds nobody
        readers = server._readers_here()
        await until(lambda: readers._rest is not None)
        await clock.advance_ms(1_000)
        assert readers._feed_task is None


async def test_a_reader_that_nobody_else_holds_goes_on_reading(store: SessionStore) -> None:
    """The loop holds its tasks weakly, and so does the feed its subscriptions."""
    async with await open_server(store, ScriptedAdapter()) as server:
        received: list[int] = []

        async def receive() -> None:
            async for event in server.subscribe(after=2):
                received.append(event.sequence_number or 0)

        kept = weakref.WeakSet([asyncio.create_task(receive())])
        await until(lambda: _waiting_readers(server))
        gc.collect()
        await append(store, server.session_id, 2)
        await until(lambda: received == [3, 4])
        for task in kept:
            task.cancel()


def _waiting_readers(server: SessionServer) -> list[Subscription]:
    readers = server._readers_here()
    return [subscription for subscription in readers._subscriptions if not subscription._behind]


async def test_streams_of_a_session_without_events_end_when_it_is_deleted(store: SessionStore) -> None:
    session = Session.new(agent_id="tester").with_status("active")
    await store.save_session(session)
    faulty: Any = FaultyStore(store)
    manager = SessionManager(faulty, ScriptedAdapter())
    async with SessionServer(store=store, adapter=ScriptedAdapter(), session_id=session.id) as server:
        subscription = server.subscribe()
        reading = asyncio.create_task(read(subscription, 99))

        async def stream() -> list[Event]:
            return [event async for event in manager.stream_session_events(session.id, poll_interval_ms=1)]

        streaming = asyncio.create_task(stream())
        # The stream has seen the row: it has asked for it twice.
        await until(lambda: not subscription._behind and faulty.calls["get_session"] >= 2)
        await store.delete_session(session.id)
        assert await reading == []
        assert await streaming == []


async def test_a_log_without_a_session_row_is_followed(store: SessionStore) -> None:
    """No references are checked: events need no session."""
    faulty: Any = FaultyStore(store)
    manager = SessionManager(faulty, ScriptedAdapter())
    streamed: list[int] = []

    async def stream() -> None:
        async for event in manager.stream_session_events("ses_none", poll_interval_ms=1):
            streamed.append(event.sequence_number or 0)

    streaming = asyncio.create_task(stream())
    await until(lambda: faulty.calls["get_session"] >= 3)
    await append(store, "ses_none", 2)
    await until(lambda: streamed == [1, 2])
    streaming.cancel()


async def test_waiting_for_the_feed_leaves_nothing_behind(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter()) as server:
        subscription = server.subscribe(after=2)
        reading = asyncio.create_task(anext(subscription))
        await until(lambda: not subscription._behind)
        feed = server._readers_here()._running_feed()
        waiting = [feed.reached(3) for _ in range(10)]
        assert waiting[0] is not None
        for reached in waiting[1:]:
            assert reached is not None
            reached.cancel()
        await until(lambda: len(feed._waiting) == 1)
        await append(store, server.session_id, 1)
        await waiting[0]
        await reading
        assert not feed._waiting
        subscription.unsubscribe()


@pytest.mark.parametrize("call", ["get_events", "get_latest_sequence"])
async def test_what_a_foreign_store_raises_is_told_as_a_store_error(store: SessionStore, call: str) -> None:
    faulty, clock = FaultyStore(store), JumpingClock()
    async with await open_server(faulty, ScriptedAdapter(), clock=clock) as server:
        await append(store, server.session_id, 1)
        faulty.failing[call] = OSError("no route to the database")
        subscription = server.subscribe()
        reading = asyncio.create_task(anext(subscription))
        for _ in range(50):
            await asyncio.sleep(0)
        assert server.is_running
        if call == "get_events":
            with pytest.raises(StoreError, match="no route") as told:
                await reading
            assert isinstance(told.value.__cause__, OSError)
        faulty.heal()
        waited = asyncio.create_task(until(reading.done))
        while not waited.done():
            await clock.advance_ms(500)
        if call == "get_events":
            reading = asyncio.create_task(anext(subscription))
        assert (await reading).sequence_number == 1
        subscription.unsubscribe()


async def test_a_stop_ends_every_reader_whatever_the_store_raises(store: SessionStore) -> None:
    faulty = FaultyStore(store)
    server = await open_server(faulty, ScriptedAdapter())
    subscription = server.subscribe(after=2)
    reading = asyncio.create_task(anext(subscription))
    await until(lambda: not subscription._behind)
    faulty.failing["get_latest_sequence"] = OSError("no route to the database")
    await server.stop()
    with pytest.raises(ActorStopped):
        await reading


@pytest.mark.parametrize("call", ["get_events", "get_latest_sequence"])
async def test_a_reader_can_leave_while_the_store_hangs(store: SessionStore, call: str) -> None:
    faulty = FaultyStore(store)
    async with await open_server(faulty, ScriptedAdapter()) as server:
        faulty.hanging.add(call)
        faulty.shielding.add(call)
        subscription = server.subscribe()
        reading = asyncio.create_task(read(subscription, 99))
        await until(lambda: faulty.calls[call])
        subscription.unsubscribe()
        assert await reading == []
        faulty.heal()


async def test_a_reader_does_not_wait_at_a_stopped_server_for_a_store_that_hangs(store: SessionStore) -> None:
    faulty, clock = FaultyStore(store), JumpingClock()
    server = await open_server(faulty, ScriptedAdapter(), clock=clock)
    subscription = server.subscribe(buffer=1)
    await anext(subscription)
    await server.stop()
    faulty.hanging.add("get_events")
    reading = asyncio.create_task(anext(subscription))
    await until(lambda: clock.timers)
    await clock.advance_ms(4_999)
    assert not reading.done()
    await clock.advance_ms(1)
    with pytest.raises(ActorStopped):
        await reading
    faulty.heal()
    assert subscription.cursor == 1
