"""From an adapter's `emit` to the log: in order, in batches, at the pace of the store."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TypeVar

from asm_runtime import options
from asm_runtime.clock import Clock, Timer, sleep
from asm_runtime.errors import (
    ActorStopped,
    Conflict,
    InvalidTransition,
    LeaseLost,
    NotFound,
    StoreUnavailable,
)
from asm_runtime.observer import RunTrace, observer
from asm_runtime.payload import JsonObject, canonical_object, encode
from asm_runtime.ports import EventCallback, SessionStore
from asm_runtime.records import TERMINAL_EVENT_TYPES, Event, EventType, Fence
from asm_runtime.runtime.callbacks import EventCallbacks
from asm_runtime.runtime.foreign import answered
from asm_runtime.tasks import start_task

__all__ = ["MOVED_ON", "RETRY_DELAYS_S", "RunRecorder", "patiently"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

BUFFER_SIZE = 1024
BUFFER_BYTES = 8 * 1024 * 1024
"""How many events, and bytes of them, may wait to be stored; then `emit` waits.

As much again may be on its way to the store.
"""

RETRY_DELAYS_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Pauses between tries to write while the store is unavailable."""

MAX_REFUSALS = 32
"""A batch that is refused is written in smaller and smaller parts, until this many were refused."""

MOVED_ON = (LeaseLost, Conflict, InvalidTransition, NotFound)
"""What a fenced write raises when somebody else has ended, requeued, claimed or deleted the run."""

_FACT_TYPES = TERMINAL_EVENT_TYPES | {EventType.RUN_STARTED}


async def patiently(clock: Clock, call: Callable[[], Awaitable[T]]) -> T:
    """Call a store again and again while it is unavailable, however long that takes."""
    tries = 0
    while True:
        try:
            return await answered(call())
        except StoreUnavailable as unavailable:
            if tries == len(RETRY_DELAYS_S):
                logger.warning("a run waits for its store: %s", unavailable)
            await sleep(clock, RETRY_DELAYS_S[min(tries, len(RETRY_DELAYS_S) - 1)])
            tries += 1


class RunRecorder:
    """Stores what one attempt of a run reports.

    `emit` puts an event in a bounded buffer, a pump appends whatever is there as one batch. So a
    stream of tokens costs one commit a batch, and a provider is slowed only by a full buffer. An
    event that was taken stays here until it is stored: what is left at the end is written with it.

    Attributes:
        facts: What the adapter said with `run_started` and terminal types; no events are made of it.
        token_usage: The last token usage reported.
        failure: Resolved with the error if a batch could not be stored; nothing more is taken then.
        last_emit: When it last reported anything, on the clock's monotonic scale.
    """

    def __init__(
        self,
        *,
        store: SessionStore,
        fence: Fence,
        provider: str,
        correlation_id: str | None,
        trace: RunTrace,
        callbacks: Sequence[EventCallback],
        clock: Clock,
        buffer_size: int = BUFFER_SIZE,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        self._store = store
        self._fence = fence
        self._provider = provider
        self._correlation_id = correlation_id
        self._trace = trace
        self._clock = clock
        self._buffer: deque[Event] = deque()
        self._buffered_bytes = 0
        self._buffer_size = buffer_size
        self._buffer_bytes = buffer_bytes
        self._in_flight: list[Event] = []
        self._room: deque[asyncio.Future[None]] = deque()
        self._pump: asyncio.Task[None] | None = None
        self._pause: asyncio.Future[None] | None = None
        self._closed = False
        self._callbacks = (
            EventCallbacks(callbacks, store=store, fence=fence, clock=clock) if callbacks else None
        )
        self.facts: JsonObject = {}
        self.token_usage: JsonObject = {}
        self.failure: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self.last_emit = clock.monotonic()

    async def emit(
        self,
        type: EventType | str,
        data: JsonObject | None = None,
        *,
        timestamp: datetime | None = None,
        metadata: JsonObject | None = None,
        id: str | None = None,
    ) -> None:
        """See `asm_runtime.ports.Emit`. A call that is cancelled has reported nothing."""
        kind = options.member("type", type, EventType)
        if kind in _FACT_TYPES:
            self._open()
            self.facts = self.facts | canonical_object(data, "data")
            self.last_emit = self._clock.monotonic()
            return
        event = self.event(kind, data, timestamp=timestamp, metadata=metadata, id=id)
        while self._open() and self._is_full:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._room.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._make_room(1)  # the place goes to the next in line
                raise
        if kind is EventType.TOKEN_USAGE_UPDATED:
            self.token_usage = event.data
        self._buffer.append(event)
        self._buffered_bytes += len(encode((event.data, event.metadata)))
        self.last_emit = self._clock.monotonic()
        if self._pump is None:
            self._pump = start_task(self._append_buffered())

    def event(
        self,
        type: EventType,
        data: JsonObject | None,
        *,
        timestamp: datetime | None = None,
        metadata: JsonObject | None = None,
        id: str | None = None,
    ) -> Event:
        """An event of this run, with its provider and correlation id."""
        return Event.new(
            type=type,
            session_id=self._fence.session_id,
            run_id=self._fence.run_id,
            data=data,
            metadata={**(metadata or {}), "provider": self._provider},
            id=id,
            timestamp=self._clock.now() if timestamp is None else timestamp,
            provider=self._provider,
            correlation_id=self._correlation_id,
        )

    async def append(self, events: Sequence[Event]) -> None:
        """Store events under the fence.

        Raises:
            LeaseLost: The run is not running under this attempt any more.
            StoreError: The store failed, after some tries if it was unavailable.
        """
        token = observer().write_began("append", self._fence.session_id, len(events), self._trace)
        try:
            stored = await self._append_with_retries(events)
        except BaseException as error:
            observer().write_ended(token, None, error)
            if self._callbacks is not None:
                self._callbacks.reread()  # they may be stored all the same
            raise
        observer().write_ended(token, stored, None)
        self.written(stored)

    async def close(self) -> list[Event]:
        """Take no more events; returns those that are not known to be stored, in order.

        They are left to the caller, who writes them in one step with the run's end.
        """
        self._closed = True
        self._make_room(len(self._room))
        if self._pause is not None and not self._pause.done():
            self._pause.set_result(None)
        if self._pump is not None:
            await asyncio.wait([self._pump])
        left = [*self._in_flight, *self._buffer]
        self._in_flight = []
        self._buffer.clear()
        return left

    async def store_singly(self, events: Sequence[Event]) -> bool:
        """Store what the store takes of a batch that it refused, in order; returns whether that is all."""
        batches = [events] if events else []
        refusals, dropped = 0, False
        while batches and refusals < MAX_REFUSALS:
            batch = batches.pop()
            try:
                await patiently(self._clock, lambda batch=batch: self.append(batch))  # type: ignore[misc]
            except (*MOVED_ON, ActorStopped):
                raise
            except Exception as refused:
                refusals += 1
                if len(batch) > 1:
                    middle = len(batch) // 2
                    batches += [batch[middle:], batch[:middle]]
                else:
                    dropped = True
                    logger.warning("an event of run %s is refused: %s", self._fence.run_id, refused)
        return not dropped

    def written(self, stored: Sequence[Event]) -> None:
        """Tell the trace and the callbacks of events that are in the log now."""
        for event in stored:
            self._trace.stored(event)
        if self._callbacks is not None:
            self._callbacks.put(stored)

    async def finish(self, grace_s: float) -> None:
        """Return when the callbacks were given every event; one that hangs is given up after the grace."""
        if self._callbacks is not None:
            await self._callbacks.finish(grace_s)

    def abort(self) -> None:
        """Stop at once; what is not stored is dropped."""
        self._closed = True
        self._make_room(len(self._room))
        if self._pump is not None:
            self._pump.cancel()
        if self._callbacks is not None:
            self._callbacks.abort()

    @property
    def refused(self) -> Exception | None:
        """Why a batch was refused for good; None where none was, or the store was out of reach."""
        failure = self.failure.result() if self.failure.done() else None
        return None if isinstance(failure, (StoreUnavailable, *MOVED_ON)) else failure

    @property
    def silent_since(self) -> float:
        """Since when the adapter has reported nothing; one that waits for room is not silent."""
        return self._clock.monotonic() if self._room else self.last_emit

    @property
    def _is_full(self) -> bool:
        return len(self._buffer) >= self._buffer_size or self._buffered_bytes >= self._buffer_bytes

    def _open(self) -> bool:
        if self._closed or self.failure.done():
            self._trace.late_event()
            raise LeaseLost(f"run {self._fence.run_id} takes no more events: its attempt is over")
        return True

    def _make_room(self, places: int) -> None:
        while places > 0 and self._room:
            turn = self._room.popleft()
            if not turn.done():
                turn.set_result(None)
                places -= 1

    async def _append_buffered(self) -> None:
        """The pump: ends when the buffer is empty, starts again with the next event.

        Once closed it only finishes the try under way: the rest is written with the run's end.
        """
        try:
            while self._buffer and not self._closed:
                self._in_flight = list(self._buffer)
                self._buffer.clear()
                self._buffered_bytes = 0
                self._make_room(self._buffer_size)
                await self.append(self._in_flight)
                self._in_flight = []
        except Exception as error:
            self.failure.set_result(error)
            self._make_room(len(self._room))
        finally:
            self._pump = None

    async def _append_with_retries(self, events: Sequence[Event]) -> list[Event]:
        for delay in RETRY_DELAYS_S:
            try:
                return await answered(self._store.append_events(events, fence=self._fence))
            except StoreUnavailable:
                if not self._closed:
                    await self._paused(delay)
                if self._closed:
                    raise
        return await answered(self._store.append_events(events, fence=self._fence))

    async def _paused(self, seconds: float) -> None:
        """Sleep, but not past the close."""
        pause = self._pause = asyncio.get_running_loop().create_future()
        timer: Timer = self._clock.call_later(seconds, _resolve, pause)
        try:
            await pause
        finally:
            timer.cancel()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
