"""From an adapter's `emit` to the log: in order, in batches, at the pace of the store."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from asm_runtime import options
from asm_runtime.clock import Clock, sleep
from asm_runtime.errors import LeaseLost, StoreUnavailable
from asm_runtime.observer import RunTrace, observer
from asm_runtime.payload import JsonObject, canonical_object
from asm_runtime.ports import EventCallback, SessionStore
from asm_runtime.records import TERMINAL_EVENT_TYPES, Event, EventType, Fence

__all__ = ["RunRecorder"]

logger = logging.getLogger(__name__)

BUFFER_SIZE = 1024
"""How many events may wait to be stored; then `emit` waits."""

RETRY_DELAYS_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Pauses between tries to write while the store is unavailable; then the run fails."""

_FACT_TYPES = TERMINAL_EVENT_TYPES | {EventType.RUN_STARTED}


class RunRecorder:
    """Stores what one attempt of a run reports.

    `emit` puts an event in a bounded buffer, a pump appends whatever is there as one batch. So a
    stream of tokens costs one commit a batch, and a provider is slowed only by a full buffer.

    Attributes:
        facts: What the adapter said with `run_started` and terminal types; no events are made of it.
        token_usage: What it last said of its tokens.
        failure: Resolved with the error if the batch could not be stored; nothing is stored after.
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
    ) -> None:
        self._store = store
        self._fence = fence
        self._provider = provider
        self._correlation_id = correlation_id
        self._trace = trace
        self._clock = clock
        self._buffer: deque[Event] = deque()
        self._buffer_size = buffer_size
        self._room: deque[asyncio.Future[None]] = deque()
        self._pump: asyncio.Task[None] | None = None
        self._closed = False
        self._callbacks = _Callbacks(callbacks, buffer_size) if callbacks else None
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
        while self._open() and len(self._buffer) >= self._buffer_size:
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
        self.last_emit = self._clock.monotonic()
        if self._pump is None:
            self._pump = asyncio.get_running_loop().create_task(self._append_buffered())

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
        """Store events that the runtime itself makes, under the fence.

        Raises:
            LeaseLost: The run is not running under this attempt any more.
            StoreError: The store failed, after some tries if it was unavailable.
        """
        token = observer().write_began("append", self._fence.session_id, len(events), self._trace)
        try:
            stored = await self._append_with_retries(events)
        except BaseException as error:
            observer().write_ended(token, None, error)
            raise
        observer().write_ended(token, stored, None)
        self.written(stored)

    async def close(self) -> list[Event]:
        """Take no more events; returns those that are not stored yet, in order.

        They are left to the caller, who writes them in one step with the run's end.
        """
        self._closed = True
        self._make_room(len(self._room))
        if self._callbacks is not None:
            self._callbacks.hold_up_nobody()
        if self._pump is not None:
            await asyncio.wait([self._pump])
        left = [] if self.failure.done() else list(self._buffer)
        self._buffer.clear()
        return left

    def written(self, stored: Sequence[Event]) -> None:
        """Tell the trace and the callbacks of events that are in the log now."""
        for event in stored:
            self._trace.stored(event)
        if self._callbacks is not None:
            self._callbacks.put(stored)

    async def callbacks_done(self) -> None:
        """Return when every callback has been given every event; there are no more."""
        if self._callbacks is not None:
            await self._callbacks.done()

    def abort(self) -> None:
        """Stop at once; what is not stored is dropped."""
        self._closed = True
        self._make_room(len(self._room))
        if self._pump is not None:
            self._pump.cancel()
        if self._callbacks is not None:
            self._callbacks.abort()

    @property
    def silent_since(self) -> float:
        """Since when the adapter has reported nothing; one that waits for room is not silent."""
        return self._clock.monotonic() if self._room else self.last_emit

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
        """The pump: ends when the buffer is empty, begins anew with the next event.

        Once closed it only finishes the batch under way: the rest is written with the run's end.
        """
        try:
            while self._buffer and not self._closed:
                batch = list(self._buffer)
                self._buffer.clear()
                self._make_room(self._buffer_size)
                await self.append(batch)
                if self._callbacks is not None:
                    await self._callbacks.has_room()
        except Exception as error:
            self._buffer.clear()
            self.failure.set_result(error)
            self._make_room(len(self._room))
        finally:
            self._pump = None

    async def _append_with_retries(self, events: Sequence[Event]) -> list[Event]:
        for delay in RETRY_DELAYS_S:
            try:
                return await self._store.append_events(events, fence=self._fence)
            except StoreUnavailable:
                if self._closed:
                    raise
                await sleep(self._clock, delay)
        return await self._store.append_events(events, fence=self._fence)


class _Callbacks:
    """Calls the event callbacks one event after the other, in a task of their own.

    One that is slow slows its run once the buffer is full; one that raises is logged.
    """

    def __init__(self, callbacks: Sequence[EventCallback], limit: int) -> None:
        self._callbacks = callbacks
        self._limit = limit
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._room: asyncio.Future[None] | None = None
        self._holds_up = True
        self._task = asyncio.get_running_loop().create_task(self._run())

    def put(self, events: Sequence[Event]) -> None:
        for event in events:
            self._queue.put_nowait(event)

    async def has_room(self) -> None:
        """Return when fewer than `limit` events wait for their callbacks, or the run is to end."""
        while self._holds_up and self._queue.qsize() >= self._limit:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def hold_up_nobody(self) -> None:
        """The run ends: a callback that hangs must not keep it from that."""
        self._holds_up = False
        self._tell_room()

    async def done(self) -> None:
        self._queue.put_nowait(None)
        await asyncio.wait([self._task])

    def abort(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        while (event := await self._queue.get()) is not None:
            for callback in self._callbacks:
                try:
                    answer: Any = callback(event)
                    if inspect.isawaitable(answer):
                        await answer
                except Exception:
                    logger.exception("an event_callback raised on %s %s", event.type, event.id)
                except asyncio.CancelledError:
                    if self._task.cancelling():
                        raise
                    # It awaited something that was cancelled; that is its own affair.
                    logger.warning("an event_callback was cancelled on %s %s", event.type, event.id)
            if self._queue.qsize() < self._limit:
                self._tell_room()

    def _tell_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
