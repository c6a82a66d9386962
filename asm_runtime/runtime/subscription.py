"""Subscriptions: what is stored, then what comes, each event once, in order.

A server has one `Feed`, which follows the log from the moment the first reader needs it and hands
every new event to the readers that have caught up. A `Subscription` reads pages from the store
until it has caught up, then takes what the feed hands it. One that falls more than its buffer
behind goes back to reading pages: it costs no memory beyond the buffer and loses nothing.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection
from types import TracebackType
from typing import Any, Self

from asm_runtime import options
from asm_runtime.actor import leave_behind
from asm_runtime.clock import Clock, Timer, sleep
from asm_runtime.errors import ActorStopped, AsmError, ValidationError
from asm_runtime.observer import observer
from asm_runtime.payload import encode
from asm_runtime.ports import SessionStore
from asm_runtime.records import Event, EventType
from asm_runtime.runtime.follow import PAGE_BYTES, follow
from asm_runtime.runtime.foreign import answered
from asm_runtime.tasks import few_a_turn, start_task

__all__ = ["Feed", "Subscription"]

logger = logging.getLogger(__name__)

PAGE_SIZE = 500
WAIT_TIMEOUT_MS = 30_000
POLL_INTERVAL_MS = 250
RETRY_DELAY_S = 1.0

READ_GRACE_S = 5.0
"""How long the store may take for a page once the server has stopped; then its reader is told just that."""

TURN_SIZE = 1_000
READER_SIZE = 7
"""How many events the feed offers, to all subscriptions together, before the loop has a turn; to wake a
reader counts as several."""

BUFFER_BYTES = 8 * 2**20
"""How much JSON may wait for a slow reader, beside the page that it is at."""

_parked: set[Subscription] = set()
"""Those whose reader waits for the feed. It keeps the reader alive: the loop and the feed hold weakly."""


class Feed:
    """Follows one session's log and hands each new event to every attached subscription.

    A subscription that nobody else holds is dropped: nobody will ever read it.

    Attributes:
        position: The number of the last event handed out. What is attached gets all later ones.
    """

    def __init__(
        self,
        store: SessionStore,
        session_id: str,
        *,
        clock: Clock,
        on_terminal: Callable[[Event], None],
        on_look: Callable[[], None],
    ) -> None:
        self._store = store
        self.session_id = session_id
        self._clock = clock
        self._on_terminal = on_terminal
        self._on_look = on_look
        self._attached: weakref.WeakKeyDictionary[Subscription, None] = weakref.WeakKeyDictionary()
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.position = 0
        self.has_ended = False

    async def run(self) -> None:
        """Follow the log until the session is deleted; the work of a task of the server."""
        while True:
            try:
                await answered(self._follow())
                return
            except ActorStopped:
                raise
            except AsmError as error:
                logger.warning("the feed of session %s waits for its store: %r", self.session_id, error)
                await sleep(self._clock, RETRY_DELAY_S)

    async def _follow(self) -> None:
        latest = await self._store.get_latest_sequence(self.session_id)
        if not self._started.done():
            self.position = latest
            self._started.set_result(None)
        if latest >= self.position:
            await self._hand_out()

    async def started(self) -> None:
        """Return when `position` is known, or the feed has ended before it was."""
        await asyncio.shield(self._started)

    def reached(self, number: int) -> asyncio.Future[None] | None:
        """Done when the event of that number has been handed out, or the feed has ended; None: it has."""
        if self.position >= number or self.has_ended:
            return None
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[reached] = number
        reached.add_done_callback(self._waiting.pop)
        return reached

    def attach(self, subscription: Subscription) -> None:
        """Hand everything later than `position` to that subscription too."""
        self._attached[subscription] = None

    def detach(self, subscription: Subscription) -> None:
        """Hand it nothing any more. Idempotent."""
        self._attached.pop(subscription, None)

    def end(self) -> None:
        """Release those who wait; nothing is handed out any more. Idempotent."""
        self.has_ended = True
        if not self._started.done():
            self._started.set_result(None)
        few_a_turn(self._release, self._waiting)
        self._attached.clear()

    async def _hand_out(self) -> None:
        batches = follow(
            self._store,
            self.session_id,
            clock=self._clock,
            after=self.position,
            limit=PAGE_SIZE,
            poll_interval_ms=POLL_INTERVAL_MS,
            wait_timeout_ms=WAIT_TIMEOUT_MS,
            has_row=True,
        )
        async for batch in batches:
            if batch:
                await self._offer(batch)
                self.position = batch[-1].sequence_number or self.position
                for event in batch:
                    if event.is_terminal:
                        self._on_terminal(event)
                few_a_turn(self._release, self._waiting)
            self._on_look()

    async def _offer(self, batch: list[Event]) -> None:
        """Give the batch to all that are attached, a few a turn.

        Who attaches meanwhile finds the batch in the store. Who has left gets no more of it.
        """
        sizes: list[int] = []

        def weigh() -> list[int]:
            if not sizes:
                sizes.extend(len(encode((event.data, event.metadata))) for event in batch)
            return sizes

        offered = 0
        for subscription in tuple(self._attached):
            if offered >= TURN_SIZE:
                await asyncio.sleep(0)
                offered = 0
            if subscription in self._attached and not subscription.offer(batch, weigh):
                self.detach(subscription)
            offered += READER_SIZE + len(batch)

    def _release(self, reached: asyncio.Future[None]) -> None:
        is_over = self.has_ended or self._waiting.get(reached, self.position) <= self.position
        if is_over and not reached.done():
            reached.set_result(None)


class Subscription:
    """A session's events from a position on: an async context manager and an async iterator.

    Iterating delivers every matching stored event exactly once, ascending. Leaving `async with`,
    `unsubscribe()` and the session's end finish the iteration. If its server crashes it raises
    `ActorStopped`: subscribe again with `after=cursor`. One task may read it at a time.
    """

    def __init__(
        self,
        store: SessionStore,
        *,
        session_id: str,
        clock: Clock,
        feed: Callable[[], Feed],
        on_end: Callable[[Subscription], None],
        gone: Callable[[], ActorStopped],
        from_sequence: int = 0,
        after: int | None = None,
        run_id: str | Collection[str] | None = None,
        type: EventType | str | Collection[EventType | str] | None = None,
        buffer: int = 1024,
    ) -> None:
        options.integer("from_sequence", from_sequence, minimum=0)
        options.integer("after", after, minimum=0, optional=True)
        if after is not None and from_sequence:
            raise ValidationError("give from_sequence (inclusive) or after (exclusive), not both")
        self._store = store
        self._session_id = session_id
        self._clock = clock
        self._feed_of = feed
        self._on_end = on_end
        self._gone = gone
        self._run_ids = options.identifiers("run_id", run_id)
        self._types = options.members("type", type, EventType)
        self._limit: int = options.integer("buffer", buffer, minimum=1)
        self._cursor = max(from_sequence - 1, 0) if after is None else after
        self._scanned = self._cursor  # everything that matches up to here was delivered
        self._feed: Feed | None = None
        self._attached_at = 0
        self._page: deque[Event] = deque()
        self._buffer: deque[Event] = deque()
        self._buffered_bytes = 0  # taken in since it was empty
        self._behind = True
        self._overflowed = False
        self._last: int | None = None  # the last number there will be, once the server stops
        self._error: BaseException | None = None
        self._closed = False
        self._reading = False
        self._delivered = 0  # since this reader gave way to others
        self._wake: asyncio.Future[None] | None = None

    @property
    def cursor(self) -> int:
        """The number of the last delivered event; resume with `after=cursor`."""
        return self._cursor

    def unsubscribe(self) -> None:
        """End the iteration at once. Idempotent."""
        if not self._closed:
            self._closed = True
            self._page.clear()
            self._buffer.clear()
            self._detach()
            self._on_end(self)
            self._stir()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unsubscribe()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        if self._reading:
            raise RuntimeError("another task is reading this subscription")
        self._reading = True
        try:
            event = await self._next()
        finally:
            self._reading = False
        if event is None:
            self.unsubscribe()
            raise StopAsyncIteration
        self._cursor = event.sequence_number or self._cursor
        self._scanned = max(self._scanned, self._cursor)
        return event

    # -- the feed's and the server's side; plain

    def offer(self, batch: list[Event], weigh: Callable[[], list[int]]) -> bool:
        """Take new events, ascending; False: the buffer is full, offer no more until it attaches again.

        Args:
            batch: The events; a page at most.
            weigh: How many bytes each of them has; asked only for a reader that is behind.
        """
        if self._closed:
            return False
        sizes = weigh() if self._buffer else [0] * len(batch)
        if not self._buffer:
            self._buffered_bytes = 0
        for event, size in zip(batch, sizes, strict=True):
            if not self._matches(event):
                continue
            if len(self._buffer) >= self._limit or self._buffered_bytes > BUFFER_BYTES:
                self._overflowed = True
                behind = (batch[-1].sequence_number or 0) - self._cursor
                observer().subscriber_lagged(self._session_id, behind)
                break
            self._buffer.append(event)
            self._buffered_bytes += size
        self._stir()
        return not self._overflowed

    def finish(self, last: int) -> None:
        """The server stops: deliver what is stored up to that number, then end."""
        if self._behind:
            self._buffer.clear()  # it lies beyond what is still to be read
        self._last = last
        self._detach()
        self._behind = True
        self._stir()

    def fail(self, error: BaseException) -> None:
        """The server crashed: raise this to the reader."""
        self._error = error
        self._detach()
        self._stir()

    # -- the reader's side

    async def _next(self) -> Event | None:
        while not self._closed:
            if self._error is not None:
                raise self._error
            if self._page or (self._buffer and not (self._behind and self._feed is not None)):
                if self._delivered >= PAGE_SIZE:  # a reader that finds more and more waiting gives way
                    self._delivered = 0
                    await asyncio.sleep(0)
                    continue
                self._delivered += 1
                if self._page:
                    return self._page.popleft()
                event = self._buffer.popleft()
                if (event.sequence_number or 0) > self._scanned:
                    return event
                continue  # read from the store already
            if self._behind:
                await self._read_page()
            elif self._overflowed:
                self._behind = True
                self._feed = None
            else:
                await self._stirred()
        return None

    async def _read_page(self) -> None:
        """One page from the store; an empty one, read while attached, means: caught up.

        Read in a task of its own: whatever the store is at, the reader can leave, and is told of the end.
        """
        reading = start_task(self._page_from_store())
        reading.add_done_callback(self._page_came)
        too_late: Timer | None = None
        try:
            while not (reading.done() or self._closed or self._error is not None):
                if self._last is not None and too_late is None:
                    too_late = self._clock.call_later(READ_GRACE_S, self._give_up)
                await self._stirred()
            if not reading.done():
                return
            page, last = reading.result()
        finally:
            reading.cancel()
            leave_behind(reading)
            if too_late is not None:
                too_late.cancel()
        if self._closed or page is None:
            return
        if page:
            self._page.extend(page)
            self._scanned = page[-1].sequence_number or self._scanned
        elif last != self._last:
            return  # the server stopped meanwhile; this look may be older than the last event
        elif last is not None:
            self.unsubscribe()
        elif self._feed is not None:
            self._behind = False
            self._scanned = max(self._scanned, self._attached_at)

    async def _page_from_store(self) -> tuple[list[Event] | None, int | None]:
        """The next page, None if there is no feed any more; and which last number it was bound by."""
        if self._last is None and self._feed is None:
            # Attach first: what comes while we read is buffered, so nothing falls between.
            feed = self._feed_of()
            await feed.started()
            if feed.has_ended or self._closed or self._last is not None:
                return None, None  # finish() or fail() follows, or has been called
            self._overflowed = False
            self._feed = feed
            feed.attach(self)
            self._attached_at = feed.position
        last = self._last
        page = await answered(
            self._store.get_events(
                self._session_id,
                run_id=self._run_ids,
                type=self._types,
                after=self._scanned,
                before=None if last is None else last + 1,
                limit=min(PAGE_SIZE, self._limit),
                max_bytes=PAGE_BYTES,
            )
        )
        return page, last

    def _page_came(self, reading: asyncio.Task[Any]) -> None:
        if not reading.cancelled():
            reading.exception()  # its reader may be gone
        self._stir()

    def _give_up(self) -> None:
        self.fail(self._gone())

    def _matches(self, event: Event) -> bool:
        return (self._run_ids is None or event.run_id in self._run_ids) and (
            self._types is None or event.type in self._types
        )

    def _detach(self) -> None:
        if self._feed is not None:
            self._feed.detach(self)
            self._feed = None

    def _stir(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _stirred(self) -> None:
        self._wake = asyncio.get_running_loop().create_future()
        _parked.add(self)
        try:
            await self._wake
        finally:
            self._wake = None
            _parked.discard(self)
