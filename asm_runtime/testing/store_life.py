"""The suite of every store: its life."""

# ruff: noqa: D102  the names of the tests are their sentences

from __future__ import annotations

import asyncio
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

import pytest

from asm_runtime.errors import (
    ActorStopped,
)
from asm_runtime.ports import ExecutionResult, SessionStore
from asm_runtime.records import Event, Fence
from asm_runtime.testing.clock import JumpingClock
from asm_runtime.testing.store_case import (
    HOUR_MS,
    StoreCase,
    StoreUnderTest,
    events,
    numbers,
    run,
    session,
)

__all__ = ["LifeCase"]

METHODS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "save_session": ((session(),), {}),
    "get_session": (("s",), {}),
    "list_sessions": ((), {}),
    "delete_session": (("s",), {}),
    "save_run": ((run(),), {}),
    "get_run": (("r",), {}),
    "list_runs": (("s",), {}),
    "get_active_run": (("s",), {}),
    "flush": ((ExecutionResult(),), {}),
    "append_event": ((Event.new(type="custom", session_id="s"),), {}),
    "append_event_with_sequence": ((Event.new(type="custom", session_id="s"),), {}),
    "append_events": (([],), {}),
    "get_events": (("s",), {}),
    "get_latest_sequence": (("s",), {}),
    "enqueue_run": ((run(),), {}),
    "claim_run": (("s",), {}),
    "release_run": ((Fence("s", "r", 1),), {}),
    "list_orphaned_runs": ((), {}),
    "wait_for_runs": (("s",), {"timeout_ms": 0}),
}


class LifeCase(StoreCase):
    """Starting and stopping."""

    def test_every_method_of_the_protocol_is_a_coroutine_function(
        self, clock: JumpingClock, tmp_path: Path
    ) -> None:
        promised = {name for name in vars(SessionStore) if not name.startswith("_")}
        assert promised == set(METHODS) | {"start", "stop"}
        store = self.new_store(clock, tmp_path)
        assert [name for name in promised if not iscoroutinefunction(getattr(store, name))] == []

    async def test_a_store_that_is_not_started_refuses_calls(
        self, clock: JumpingClock, tmp_path: Path
    ) -> None:
        store = self.new_store(clock, tmp_path)
        for method, (arguments, options) in METHODS.items():
            with pytest.raises(ActorStopped):
                await getattr(store, method)(*arguments, **options)

    async def test_a_stopped_store_refuses_calls(self, store: StoreUnderTest) -> None:
        await store.stop()
        for method, (arguments, options) in METHODS.items():
            with pytest.raises(ActorStopped):
                await getattr(store, method)(*arguments, **options)

    async def test_start_returns_the_store_and_starting_again_does_nothing(
        self, store: StoreUnderTest
    ) -> None:
        await store.save_session(session())
        assert await store.start() is store
        assert (await store.get_session("s")).id == "s"

    async def test_stopping_again_does_nothing_and_a_stopped_store_does_not_start(
        self, store: StoreUnderTest
    ) -> None:
        await store.stop()
        await store.stop()
        with pytest.raises(ActorStopped):
            await store.start()

    async def test_a_store_that_was_never_started_can_be_stopped(
        self, clock: JumpingClock, tmp_path: Path
    ) -> None:
        store = self.new_store(clock, tmp_path)
        await store.stop()
        with pytest.raises(ActorStopped):
            await store.start()

    async def test_calls_under_way_when_the_store_stops_are_answered_first(
        self, store: StoreUnderTest
    ) -> None:
        calls = [asyncio.create_task(store.append_event_with_sequence(event)) for event in events(50)]
        await asyncio.sleep(0)
        await store.stop()
        assert numbers(await asyncio.gather(*calls)) == list(range(1, 51))

    async def test_stopping_answers_parked_callers(self, store: StoreUnderTest, clock: JumpingClock) -> None:
        revision = await store.wait_for_runs("s", timeout_ms=0)
        for_events = asyncio.create_task(store.get_events("s", wait_timeout_ms=HOUR_MS))
        for_runs = asyncio.create_task(store.wait_for_runs("s", after=revision, timeout_ms=None))
        await self.begun(clock, for_runs)
        await store.stop()
        assert await for_events == []
        assert await for_runs == revision

    async def test_a_wrong_option_does_not_stop_the_store(self, store: StoreUnderTest) -> None:
        with pytest.raises(TypeError):
            await store.get_events("s", nonsense=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        assert await store.get_events("s") == []
