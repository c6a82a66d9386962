"""The long poll of every store: callers that wait for events, and for a session's runs to change.

A waiter is registered *before* the store reads. What happens to the session between the read and
the wait then marks the waiter, and no wake-up is lost. `read_or_wait` is that loop; a store says how
to read, and tells what was appended, changed or deleted.

Waiters are found by session, so a change costs nothing for those of other sessions. Those who are to
be told of something stand in one queue, and a few are told in each turn of the loop: however many wait,
others have their turn. They belong to the loop: nothing here may be called from another thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import accumulate
from typing import Any, Generic, Self, TypeVar, cast

import msgspec

from asm_runtime.clock import Clock, Timer
from asm_runtime.observer import observer
from asm_runtime.payload import encode
from asm_runtime.records import Event
from asm_runtime.stores.filters import EventFilter
from asm_runtime.stores.pace import Pace

__all__ = ["EventWaiter", "EventWaiters", "RevisionWaiter", "RevisionWaiters"]

IN_HAND = 256
BYTES_IN_HAND = 1024 * 1024
"""How many new events, and how large ones, are handed to one that waits; more it reads from the store."""

TOLD_AT_ONCE = 64
"""How many are told before the loop turns: each then has something to do."""

_decode_events = msgspec.json.Decoder(list[Event]).decode

T = TypeVar("T")
W = TypeVar("W", bound="_Waiter[Any]")


class _Waiter(Generic[T]):
    """One caller, from before it reads until it has its answer.

    It is *reading*, then *parked*: it has a reply to wait for. What happens while it reads it learns when
    it parks; when it is parked, it is told. Waiters of one session form a chain: a set for each session
    would cost more than the waiter itself.
    """

    __slots__ = (
        "_ended",
        "_is_queued",
        "_newer",
        "_older",
        "_reply",
        "_session_id",
        "_stale",
        "_timer",
        "_waiters",
    )

    def __init__(self, waiters: _Waiters[Any], session_id: str) -> None:
        self._waiters: _Waiters[Any] | None = waiters
        self._session_id = session_id
        self._older: Self | None = None
        self._newer: Self | None = None
        self._reply: asyncio.Future[T | None] | None = None
        self._timer: Timer | None = None
        self._is_queued = False
        """Whether it is about to be told."""
        self._stale = False
        """Whether it is to read again."""
        self._ended = False
        """Whether the time is over, the session is gone, or the store has stopped."""

    def cancel(self) -> None:
        """Leave: the caller has its answer, or is gone. Idempotent, O(1)."""
        waiters = self._waiters
        if waiters is None:
            return
        self._waiters = None
        waiters._remove(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._reply is not None:
            observer().waiters_changed(-1)

    def _park(self, deadline: float | None) -> Awaitable[T | None]:
        clock = cast("_Waiters[Any]", self._waiters)._clock
        reply = asyncio.get_running_loop().create_future()
        seconds = None if deadline is None else deadline - clock.monotonic()
        if self._ended or (seconds is not None and seconds <= 0):
            reply.set_result(self._at_end())
        elif self._stale:
            reply.set_result(None)
        else:
            self._reply = reply
            if seconds is not None:
                self._timer = clock.call_later(seconds, self._end)
            observer().waiters_changed(1)
        return reply

    def _end(self) -> None:
        self._ended = True
        self._tell()

    def _read_again(self) -> None:
        self._stale = True
        self._tell()

    def _tell(self) -> None:
        """Have it told soon of what has happened."""
        waiters = self._waiters
        if waiters is not None and self._reply is not None and not self._is_queued:
            self._is_queued = True
            waiters._tell(self)

    def _told(self) -> None:
        """Answer it, if what has happened is an answer."""
        if self._ended:
            self._answer(self._at_end())
        elif self._stale:
            self._answer(None)

    def _at_end(self) -> T:
        raise NotImplementedError

    def _answer(self, value: T | None) -> None:
        assert self._reply is not None
        self.cancel()
        if not self._reply.done():  # else its caller was cancelled in this turn of the loop
            self._reply.set_result(value)


class _Waiters(Generic[W]):
    """Waiters by session."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._newest: dict[str, W] = {}
        self._count = 0
        self._stopped = False
        self._queue: deque[W] = deque()
        """Who is to be told, each once."""
        self._room = TOLD_AT_ONCE
        """How many may be told in this turn of the loop."""
        self._pace = Pace()

    def __len__(self) -> int:
        """How many callers read or wait."""
        return self._count

    def sessions(self) -> list[str]:
        """The sessions that somebody waits for."""
        return list(self._newest)

    def changed(self, session_id: str) -> None:
        """Have that session's waiters read again: another process changed it, no more is known."""
        for waiter in self._of(session_id):
            waiter._read_again()

    def deleted(self, session_id: str) -> None:
        """Answer that session's waiters: it is gone."""
        for waiter in self._of(session_id):
            waiter._end()

    def stop(self) -> None:
        """Answer all waiters, and those that register from now on at once. Idempotent."""
        self._stopped = True
        for session_id in self.sessions():
            self.deleted(session_id)

    def _add(self, waiter: W) -> W:
        session_id = waiter._session_id
        self._count += 1
        older = self._newest.get(session_id)
        self._newest[session_id] = waiter
        if older is not None:
            waiter._older, older._newer = older, waiter
        if self._stopped:
            waiter._end()
        return waiter

    def _remove(self, waiter: W) -> None:
        self._count -= 1
        older, newer = waiter._older, waiter._newer
        waiter._older = waiter._newer = None
        if older is not None:
            older._newer = newer
        if newer is not None:
            newer._older = older
        elif older is not None:
            self._newest[waiter._session_id] = older
        else:
            del self._newest[waiter._session_id]

    def _of(self, session_id: str) -> list[W]:
        """That session's waiters, who came first first."""
        found: list[W] = []
        waiter = self._newest.get(session_id)
        while waiter is not None:
            found.append(waiter)
            waiter = waiter._older
        found.reverse()
        return found

    def _tell(self, waiter: W) -> None:
        self._queue.append(waiter)
        if self._room == TOLD_AT_ONCE:
            self._begin_turn()
        if self._room:
            self._tell_next()

    def _begin_turn(self) -> None:
        self._pace = Pace()
        asyncio.get_running_loop().call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._room = TOLD_AT_ONCE
        if self._queue:
            self._begin_turn()
            while self._queue and self._room:
                self._tell_next()

    def _tell_next(self) -> None:
        waiter = self._queue.popleft()
        waiter._is_queued = False
        if waiter._waiters is not None:
            waiter._told()
        self._room = 0 if self._pace.is_over else self._room - 1


class EventWaiter(_Waiter[list[Event]]):
    """One caller of `get_events`."""

    __slots__ = ("_batch", "_filter", "_head")

    def __init__(self, waiters: EventWaiters, session_id: str, filter: EventFilter) -> None:
        super().__init__(waiters, session_id)
        self._filter = filter
        self._head = 0
        self._batch: _Batch | None = None
        """The new events that it is about to be told of."""

    def wait(self, head: int, deadline: float) -> Awaitable[list[Event] | None]:
        """Wait for matching events. The caller cancels the waiter afterwards, in a `finally`.

        Args:
            head: The session's latest number in the snapshot that was read and held no match.
            deadline: When to give up, on the clock's `monotonic()`.

        Returns:
            The matching events; `[]` at the deadline, at the session's deletion and at the stop;
            None: something happened that is not in hand, read again.
        """
        if self._head > head:
            self._stale = True  # events came meanwhile that the read has not seen
        self._head = head
        return self._park(deadline)

    def _at_end(self) -> list[Event]:
        return []

    def _appended(self, batch: _Batch) -> None:
        if self._reply is None:
            self._head = batch.last  # whether its read has seen them, the read's head will tell
        elif self._batch is None:
            self._batch = batch
            self._tell()
        else:
            self._stale = True  # it has not heard of the last ones yet

    def _told(self) -> None:
        batch, self._batch = self._batch, None
        if batch is not None and batch.last > self._head and not self._ended:
            wanted = batch.picked(self._filter) if batch.first == self._head + 1 else None
            if wanted:
                self._answer(wanted)
                return
            if wanted is None:
                self._stale = True  # what lies between, or came since, is not in hand
            self._head = batch.last
        super()._told()


class _Batch:
    """New events of one session, stored, in ascending order.

    They are kept as text: each waiter is given payloads of its own, and who appended them may do with
    his what he likes.
    """

    __slots__ = ("_events", "_texts", "first", "last")

    def __init__(self, events: Sequence[Event]) -> None:
        self.first = cast(int, events[0].sequence_number)
        self.last = cast(int, events[-1].sequence_number)
        self._events = events
        self._texts: list[bytes] | None = None
        if len(events) <= IN_HAND:
            size = 0
            self._texts = []
            for event in events:
                self._texts.append(encode(event))
                size += len(self._texts[-1])
                if size > BYTES_IN_HAND:
                    self._texts = None
                    break

    def picked(self, filter: EventFilter) -> list[Event] | None:
        """What a filter wants of them; None: they are too many, or too large, to be in hand."""
        if self._texts is None:
            return None
        wanted = [
            text for event, text in zip(self._events, self._texts, strict=True) if filter.matches(event)
        ]
        if filter.order == "desc":
            wanted.reverse()
        wanted = wanted[: filter.limit]
        if filter.max_bytes is not None:
            sizes = accumulate(map(len, wanted))
            wanted = wanted[: max(1, sum(size <= filter.max_bytes for size in sizes))]
        return _decode_events(b"[" + b",".join(wanted) + b"]") if wanted else []


class EventWaiters(_Waiters[EventWaiter]):
    """The waiters for events, see the module."""

    async def read_or_wait(
        self,
        session_id: str,
        filter: EventFilter,
        wait_timeout_ms: int,
        read: Callable[[str, EventFilter], Awaitable[tuple[list[Event], int]]],
    ) -> list[Event]:
        """What `SessionStore.get_events` answers.

        Args:
            session_id: Whose log.
            filter: What the caller wants.
            wait_timeout_ms: How long to wait for a first match; 0: not at all.
            read: Given the session and a filter, reads the wanted events and, in the same snapshot,
                the session's latest number.
        """
        deadline = self._clock.monotonic() + wait_timeout_ms / 1000
        while True:
            waiter = self.register(session_id, filter)
            try:
                events, head = await read(session_id, filter)
                if events or not wait_timeout_ms:
                    return events
                answer = await waiter.wait(head, deadline)
            finally:
                waiter.cancel()
            if answer is not None:
                return answer
            if self._stopped:
                return []
            if head > filter.after:  # nothing up to there matches: the next read begins after it
                filter = msgspec.structs.replace(filter, after=head)

    def register(self, session_id: str, filter: EventFilter) -> EventWaiter:
        """A waiter of that session; to be called before the store reads."""
        return self._add(EventWaiter(self, session_id, filter))

    def appended(self, session_id: str, events: Sequence[Event]) -> None:
        """Hand new events of that session, stored, in ascending order, to those who wait for them."""
        waiters = self._of(session_id) if events else []
        if not waiters:
            return
        batch = _Batch(events)
        for waiter in waiters:
            waiter._appended(batch)


class RevisionWaiter(_Waiter[int]):
    """One caller of `wait_for_runs`."""

    __slots__ = ("_after", "_known")

    def __init__(self, waiters: RevisionWaiters, session_id: str) -> None:
        super().__init__(waiters, session_id)
        self._after = 0
        self._known = 0

    def wait(self, known: int, *, after: int, deadline: float | None) -> Awaitable[int | None]:
        """Wait until the revision is past `after`. The caller cancels the waiter afterwards, in a `finally`.

        Args:
            known: The revision that was read.
            after: What it is to exceed.
            deadline: When to give up, on the clock's `monotonic()`; None: never.

        Returns:
            The revision; at the deadline, the session's deletion and the stop the last that is
            known; None: it may have changed, read again.
        """
        self._known, self._after = max(known, self._known), after
        if self._known > after:
            self._ended = True  # it changed while the caller was reading
        return self._park(deadline)

    def _at_end(self) -> int:
        return self._known

    def _changed(self, revision: int) -> None:
        self._known = revision
        if self._reply is not None and revision > self._after:
            self._end()


class RevisionWaiters(_Waiters[RevisionWaiter]):
    """The waiters for changes of a session's runs, see the module."""

    async def read_or_wait(
        self,
        session_id: str,
        after: int | None,
        timeout_ms: int | None,
        read: Callable[[str], Awaitable[int]],
    ) -> int:
        """What `SessionStore.wait_for_runs` answers.

        Args:
            session_id: Whose runs.
            after: What the revision is to exceed; None: answer at once.
            timeout_ms: How long to wait; None: no limit.
            read: Given the session, reads its revision.
        """
        if after is None:
            return await read(session_id)
        deadline = None if timeout_ms is None else self._clock.monotonic() + timeout_ms / 1000
        while True:
            waiter = self.register(session_id)
            try:
                revision = await read(session_id)
                if revision > after:
                    return revision
                answer = await waiter.wait(revision, after=after, deadline=deadline)
            finally:
                waiter.cancel()
            if answer is not None:
                return answer
            if self._stopped:
                return revision

    def register(self, session_id: str) -> RevisionWaiter:
        """A waiter of that session; to be called before the store reads the revision."""
        return self._add(RevisionWaiter(self, session_id))

    def changed(self, session_id: str, revision: int | None = None) -> None:
        """Tell that session's waiters its new revision; None: changed by others, to be read again."""
        if revision is None:
            super().changed(session_id)
        else:
            for waiter in self._of(session_id):
                waiter._changed(revision)
