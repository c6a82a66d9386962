"""Subscriptions: every matching stored event exactly once, ascending, whatever happens."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asm_runtime import Event, SessionServer
from asm_runtime.adapters import ScriptedAdapter
from asm_runtime.adapters.scripted import Gate, tokens
from asm_runtime.errors import ActorStopped, ValidationError
from asm_runtime.ports import SessionStore
from asm_runtime.subscription import Subscription
from asm_runtime.testing import JumpingClock
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
