"""From `emit` to the log: what is taken, who waits, what is left at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from asm_runtime import Event, Run
from asm_runtime.errors import LeaseLost, StoreError, StoreUnavailable
from asm_runtime.observer import RunTrace
from asm_runtime.ports import SessionStore
from asm_runtime.runtime.recorder import RunRecorder
from asm_runtime.stores import InMemorySessionStore
from asm_runtime.testing import JumpingClock
from tests.runtime.faulty import FaultyStore
from tests.runtime.support import until


class Bench:
    """A recorder of one run, on a store that can be told to fail."""

    def __init__(self, store: SessionStore, run: Run, **options: Any) -> None:
        self.faulty: Any = FaultyStore(store)
        self.clock = JumpingClock()
        recorder: Any = RunRecorder(
            store=self.faulty,
            fence=run.fence,
            provider="p",
            correlation_id=None,
            trace=RunTrace(),
            callbacks=(),
            clock=self.clock,
            **options,
        )
        self.recorder = recorder

    def emit(self, number: int) -> asyncio.Task[None]:
        emitting: Awaitable[None] = self.recorder.emit("custom", {"name": str(number)})
        return asyncio.ensure_future(emitting)

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    def names(self, events: list[Event]) -> list[str]:
        return [event.data["name"] for event in events]


def refuses_3_and_6(events: list[Event], **_: Any) -> StoreError | None:
    return StoreError("no") if any(event.data["name"] in "36" for event in events) else None


async def bench(store: SessionStore, **options: Any) -> Bench:
    await store.enqueue_run(Run.new(session_id="s", id="r"))
    run = await store.claim_run("s")
    assert run is not None
    return Bench(store, run, **options)


async def test_what_is_emitted_while_a_batch_is_written_is_the_next_batch() -> None:
    async with InMemorySessionStore() as store:
        made = await bench(store)
        made.faulty.hanging.add("append_events")
        await made.emit(0)
        await made.settle()
        for number in range(1, 100):
            await made.emit(number)
        made.faulty.heal()
        await made.settle()
        assert made.faulty.calls["append_events"] == 2
        assert made.names(await store.get_events("s")) == [str(number) for number in range(100)]
        assert await made.recorder.close() == []


async def test_a_full_buffer_holds_up_who_emits_in_order() -> None:
    async with InMemorySessionStore() as store:
        made = await bench(store, buffer_size=2)
        made.faulty.hanging.add("append_events")
        emitting = [made.emit(number) for number in range(6)]
        await made.settle()
        assert [task.done() for task in emitting] == [True] * 4 + [False] * 2
        made.faulty.heal()
        await asyncio.wait(emitting)
        await made.settle()
        assert made.names(await store.get_events("s")) == ["0", "1", "2", "3", "4", "5"]


async def test_a_place_that_a_cancelled_emit_was_given_goes_to_the_next() -> None:
    async with InMemorySessionStore() as store:
        made = await bench(store, buffer_size=1)
        made.faulty.hanging.add("append_events")
        emitting = [made.emit(number) for number in range(4)]
        await made.settle()
        assert [task.done() for task in emitting] == [True, True, False, False]
        made.recorder._make_room(1)  # the third was told
        emitting[2].cancel()
        made.recorder._buffer.clear()
        await made.settle()
        assert emitting[2].cancelled()
        assert emitting[3].done()
        made.faulty.heal()


@pytest.mark.parametrize("how", ["closed", "aborted", "failed"])
async def test_who_waits_for_room_is_told_when_there_will_be_none(how: str) -> None:
    async with InMemorySessionStore() as store:
        made = await bench(store, buffer_size=1)
        made.faulty.hanging.add("append_events")
        emitting = [made.emit(number) for number in range(4)]
        await made.settle()
        closing: asyncio.Future[list[Event]] | None = None
        if how == "closed":
            closing = asyncio.ensure_future(made.recorder.close())
        elif how == "aborted":
            made.recorder.abort()
        else:
            made.faulty.failing["append_events"] = StoreError("no")
            made.faulty.go_on()
        await made.settle()
        for task in emitting[2:]:
            with pytest.raises(LeaseLost):
                await task
        with pytest.raises(LeaseLost):
            await made.emit(9)
        made.faulty.heal()
        if closing is not None:
            await closing


async def test_a_close_waits_for_the_write_under_way_and_leaves_the_rest() -> None:
    async with InMemorySessionStore() as store:
        made = await bench(store)
        made.faulty.hanging.add("append_events")
        await made.emit(0)
        await made.settle()
        await made.emit(1)
        closing = asyncio.ensure_future(made.recorder.close())
        await made.settle()
        assert not closing.done()
        made.faulty.heal()
        assert made.names(await closing) == ["1"]
        assert made.names(await store.get_events("s")) == ["0"]


async def test_a_close_does_not_wait_for_a_store_that_is_out_of_reach() -> None:
    async with InMemorySessionStore() as store:
        made = await bench(store)
        made.faulty.failing["append_events"] = StoreUnavailable("busy")
        await made.emit(0)
        await made.clock.until_timers(1)
        await made.emit(1)
        tries = made.faulty.calls["append_events"]
        assert made.names(await made.recorder.close()) == ["0", "1"]
        assert made.faulty.calls["append_events"] == tries
        assert made.recorder.refused is None
        assert made.clock.timers == 0


async def test_an_outage_that_does_not_pass_fails_the_recorder_and_loses_nothing() -> None:
    async with InMemorySessionStore() as store:
        made = await bench(store)
        made.faulty.failing["append_events"] = StoreUnavailable("busy")
        await made.emit(0)
        while not made.recorder.failure.done():
            await made.clock.advance_ms(500)
        assert 3 < made.clock.monotonic() < 5
        assert made.recorder.refused is None
        assert made.names(await made.recorder.close()) == ["0"]


async def test_what_is_refused_is_left_to_be_stored_in_parts() -> None:
    async with InMemorySessionStore() as store:
        made = await bench(store)
        made.faulty.hanging.add("append_events")
        await made.emit(0)
        await made.settle()
        for number in range(1, 9):
            await made.emit(number)
        made.faulty.refusing["append_events"] = refuses_3_and_6
        made.faulty.go_on()
        await until(made.recorder.failure.done)
        left = await made.recorder.close()
        assert made.names(left) == [str(number) for number in range(1, 9)]
        assert str(made.recorder.refused) == "no"
        assert not await made.recorder.store_singly(left)
        assert made.names(await store.get_events("s")) == ["0", "1", "2", "4", "5", "7", "8"]
        made.faulty.heal()
        assert await made.recorder.store_singly(left)
        assert await made.recorder.store_singly([])
