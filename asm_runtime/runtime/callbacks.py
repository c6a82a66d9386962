"""A run's event callbacks: user code that is given every stored event, at its own pace."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

from asm_runtime.clock import Clock, all_done, sleep
from asm_runtime.errors import ActorStopped, AsmError
from asm_runtime.payload import encode
from asm_runtime.ports import EventCallback, SessionStore
from asm_runtime.records import Event, EventType, Fence
from asm_runtime.runtime.foreign import answered
from asm_runtime.tasks import start_task

__all__ = ["EventCallbacks"]

logger = logging.getLogger(__name__)

BUFFER_SIZE = 256
BUFFER_BYTES = 2 * 1024 * 1024
"""How many events, and bytes of them, wait for a callback in memory; past it they are read from the store."""

RETRY_DELAY_S = 1.0

EVENTS_A_TURN = 50
"""After this many plain callbacks the loop gets its turn."""


class EventCallbacks:
    """Calls the callbacks with one event after the other, in a task of their own.

    Nobody waits for them: one that is slow, or hangs, holds up neither the run nor its provider, and
    costs no memory beyond its buffer. One that raises is logged.

    Args:
        callbacks: The functions to call with each event.
        store: Where the events are.
        fence: The run's.
        clock: The source of time.
        buffer_size: How many events may wait in memory.
        buffer_bytes: How many bytes of them, but for the last.
    """

    def __init__(
        self,
        callbacks: Sequence[EventCallback],
        *,
        store: SessionStore,
        fence: Fence,
        clock: Clock,
        buffer_size: int = BUFFER_SIZE,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        self._callbacks = callbacks
        self._store = store
        self._fence = fence
        self._clock = clock
        self._buffer_size = buffer_size
        self._buffer_bytes = buffer_bytes
        self._buffer: deque[tuple[Event, int]] = deque()
        self._bytes = 0
        self._cursor = 0  # the last number that was given to them
        self._head = 0  # the greatest that is known to be stored
        self._lagging = False
        # Whether the log, at the cursor, is this attempt's: the run's other attempts have callbacks too.
        self._is_own = fence.attempt <= 1
        self._ended = False
        self._given = 0
        self._wake: asyncio.Future[None] | None = None
        self._task = start_task(self._run())

    def put(self, events: Sequence[Event]) -> None:
        """These are stored now. An event that was stored before is passed over."""
        self._is_own = True
        for event in events:
            number = event.sequence_number or 0
            if number > self._head:
                self._head = number
                if not self._lagging:
                    self._keep(event)
        self._tell()

    def reread(self) -> None:
        """Go on from the store: there may be events in it that were not put."""
        self._lagging = True
        self._buffer.clear()
        self._bytes = 0
        self._tell()

    def _keep(self, event: Event) -> None:
        if len(self._buffer) >= self._buffer_size or self._bytes >= self._buffer_bytes:
            self.reread()
            return
        size = len(encode((event.data, event.metadata)))
        self._buffer.append((event, size))
        self._bytes += size

    async def finish(self, grace_s: float) -> None:
        """Return when they were given every event, or when one call takes longer than the grace."""
        self._ended = True
        self._tell()
        while not self._task.done():
            given = self._given
            if not await all_done(self._clock, grace_s, self._task) and self._given == given:
                logger.warning(
                    "an event_callback of run %s is given up: it has not returned within %s s",
                    self._fence.run_id, grace_s,
                )  # fmt: skip
                self._task.cancel()
                return

    def abort(self) -> None:
        """Call nobody any more."""
        self._task.cancel()

    def _tell(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _run(self) -> None:
        while True:
            if self._lagging:
                await self._catch_up()
            elif self._buffer:
                event, size = self._buffer.popleft()
                self._bytes -= size
                await self._give(event)
            elif self._ended:
                return
            else:
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake

    async def _catch_up(self) -> None:
        """Give them a page of the store's; when there is none, and nothing came meanwhile, they are fed."""
        session_id, run_id, head = self._fence.session_id, self._fence.run_id, self._head
        try:
            page = await answered(
                self._store.get_events(
                    session_id,
                    run_id=run_id,
                    after=self._cursor,
                    limit=self._buffer_size,
                    max_bytes=self._buffer_bytes,
                )
            )
        except ActorStopped:
            page = []
        except AsmError as error:
            logger.warning("the event_callback of run %s waits for the store: %s", run_id, error)
            await sleep(self._clock, RETRY_DELAY_S)
            return
        if not page and self._head == head:
            self._lagging = False
        for event in page:
            if event.type is EventType.RUN_STARTED and event.data.get("attempt") != self._fence.attempt:
                if self._is_own:  # a later attempt's: this one has come to its end
                    self._lagging, self._ended = False, True
                    return
            elif event.type is EventType.RUN_STARTED:
                self._is_own = True
            if self._is_own:
                await self._give(event)
            self._cursor = event.sequence_number or self._cursor
            self._head = max(self._head, self._cursor)

    async def _give(self, event: Event) -> None:
        self._cursor = event.sequence_number or self._cursor
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
        self._given += 1
        if self._given % EVENTS_A_TURN == 0:
            await asyncio.sleep(0)
