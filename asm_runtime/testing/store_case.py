"""What the tests of a store stand on: the hook that makes it, the fixtures, a few short-hands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import pytest

from asm_runtime.clock import Clock
from asm_runtime.payload import encode
from asm_runtime.ports import SessionStore
from asm_runtime.records import Event, Run, RunStatus, Session, SessionStatus
from asm_runtime.testing.clock import JumpingClock

__all__ = [
    "StoreCase",
    "StoreUnderTest",
    "as_json",
    "events",
    "ids",
    "json_size",
    "numbers",
    "run",
    "session",
]

T = TypeVar("T")

HOUR_MS = 3_600_000


class StoreUnderTest(SessionStore, AbstractAsyncContextManager[Any], Protocol):
    """A store, with `async with`."""


class StoreCase:
    """Base of the suites, see `asm_runtime.testing.store_conformance`."""

    private: ClassVar[str | None] = None
    """Why no second store can be opened on the same data; None: it can, and that is tested."""

    def new_store(self, clock: Clock, place: Path) -> StoreUnderTest:
        """A store that is not started, on the data that belongs to `place`.

        Args:
            clock: Where the store takes its times and timers from.
            place: A directory of the test's own, empty at first. Two stores made for the same place
                share their data, unless the store is `private`.
        """
        raise NotImplementedError

    @pytest.fixture
    def clock(self) -> JumpingClock:
        """The clock of the test's stores."""
        return JumpingClock()

    @pytest.fixture
    async def store(self, clock: JumpingClock, tmp_path: Path) -> AsyncIterator[StoreUnderTest]:
        """A store on empty data, started."""
        async with self.new_store(clock, tmp_path) as store:
            yield store

    @staticmethod
    async def begun(clock: JumpingClock, task: asyncio.Task[T]) -> asyncio.Task[T]:
        """The task, once it had the chance to begin and to park."""
        await clock.advance_ms(0)
        return task

    @staticmethod
    async def ended(clock: JumpingClock, task: asyncio.Task[T], step_ms: int = 10) -> T:
        """The task's result; the clock goes on until it is there."""
        while not task.done():
            await clock.advance_ms(step_ms)
        return task.result()

    @staticmethod
    async def eventually(clock: JumpingClock, condition: Callable[[], bool | Awaitable[bool]]) -> None:
        """Return when the condition holds; the clock goes on until it does."""
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await clock.advance_ms(10)


def session(id: str = "s", status: str = "active", **fields: Any) -> Session:
    """A session of agent `a`, unless told otherwise."""
    given: dict[str, Any] = {"agent_id": "a"} | fields
    return Session.new(id=id, status=status, **given)


def run(id: str = "r", session_id: str = "s", status: str = "pending", **fields: Any) -> Run:
    """A run in whatever status."""
    changes = {name: fields.pop(name) for name in ("owner", "attempt", "started_at") if name in fields}
    return Run.new(id=id, session_id=session_id, **fields).replace(status=RunStatus(status), **changes)


def events(count: int, session_id: str = "s", **fields: Any) -> list[Event]:
    """New events of type `custom`, unless told otherwise."""
    given: dict[str, Any] = {"type": "custom", "session_id": session_id} | fields
    return [Event.new(**given) for _ in range(count)]


def numbers(found: Iterable[Event]) -> list[int | None]:
    """Their sequence numbers."""
    return [event.sequence_number for event in found]


def ids(found: Iterable[Event | Run | Session]) -> list[str]:
    """Their ids."""
    return [record.id for record in found]


def json_size(event: Event) -> int:
    """How many bytes its JSON has."""
    return len(encode(event.to_dict()))


def as_json(value: Any) -> str:
    """A text that differs for values that are not the same JSON: 1, 1.0, True, -0.0."""
    return json.dumps(value, sort_keys=True)


TERMINAL_RUNS = [status for status in RunStatus if status.is_terminal]
TERMINAL_SESSIONS = [status for status in SessionStatus if status.is_terminal]
