"""One session's events in memory: encoded, numbered by their place, indexed for every filter."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from heapq import merge
from itertools import islice
from typing import NamedTuple, TypeVar

import msgspec

from asm_runtime.records import Event, EventType
from asm_runtime.stores.filters import EventFilter, byte_size
from asm_runtime.stores.pace import Pace

__all__ = ["EventLog"]

K = TypeVar("K")

_LONG_AGO = -(2**63)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_SHORT = 32
"""A log of fewer events is read through. An index for each idle session would double what it keeps."""

_BLOCK = 64
"""For how many events one latest time is kept."""

_SLICE = 256
"""How many events are looked at in one go."""

_PIECE = 4096
"""How many events are freed in one go."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class _Kind(NamedTuple):
    """What many events of a session have in common; stored once."""

    type: EventType
    run_id: str | None
    provider: str | None
    schema_version: int


class _Index:
    """Where in a log what is, for all but short ones."""

    __slots__ = ("by_run", "by_type", "latest_by_block", "numbers_of_kinds")

    def __init__(self, kinds: Iterable[_Kind]) -> None:
        self.numbers_of_kinds = {kind: number for number, kind in enumerate(kinds)}
        self.by_run: dict[str, array[int]] = {}
        self.by_type: dict[EventType, array[int]] = {}
        self.latest_by_block = array("q")
        """After each block the latest time so far. It never falls, so the events that are not later than
        some time, nor any before them, are found by bisection."""

    def add(self, number: int, kind: _Kind, latest: int) -> None:
        _indexed(self.by_type, kind.type, number)
        if kind.run_id is not None:
            _indexed(self.by_run, kind.run_id, number)
        if number % _BLOCK == 0:
            self.latest_by_block.append(latest)


class EventLog:
    """An append-only log. A reader that remembers `len(log)` has a snapshot of it.

    What differs from event to event is one MessagePack row, what repeats is a number. Measured with
    tracemalloc, an event with a payload of 128 bytes takes 270 to 300 bytes.
    """

    __slots__ = (
        "_ids",
        "_index",
        "_kind_of",
        "_kinds",
        "_latest",
        "_readers",
        "_rows",
        "_times",
    )

    def __init__(self) -> None:
        self._ids: list[str | bytes] = []
        self._rows: dict[str | bytes, bytes] = {}
        """By id: number, data, metadata, correlation id."""
        self._times = array("q")
        """Microseconds since 1970."""
        self._latest = _LONG_AGO
        self._kind_of = array("I")
        self._kinds: list[_Kind] = []
        self._index: _Index | None = None
        self._readers: int | None = 0
        """How many go through it; None: it is being emptied."""

    def __len__(self) -> int:
        """The latest number."""
        return len(self._ids)

    def append(self, event: Event) -> int | None:
        """Store an event in canonical form as the next one; returns its number, None if its id is taken."""
        id = _packed(event.id)
        if id in self._rows:
            return None
        number = len(self._ids) + 1
        row = _encode((number, event.data, event.metadata, event.correlation_id))
        self._rows[id] = bytes(memoryview(row))  # the encoder leaves a third of its buffer unused
        self._ids.append(id)
        time = _microseconds(event.timestamp)
        self._times.append(time)
        if time > self._latest:
            self._latest = time
        kind = _Kind(event.type, event.run_id, event.provider, event.schema_version)
        self._kind_of.append(self._number_of(kind))
        if self._index is not None:
            self._index.add(number, kind, self._latest)
        elif number == _SHORT:
            self._index = _Index(self._kinds)
            for earlier, kind_number in enumerate(self._kind_of, start=1):
                self._index.add(earlier, self._kinds[kind_number], self._latest)
        return number

    def _number_of(self, kind: _Kind) -> int:
        if self._index is not None:
            number = self._index.numbers_of_kinds.setdefault(kind, len(self._kinds))
        else:
            number = self._kinds.index(kind) if kind in self._kinds else len(self._kinds)
        if number == len(self._kinds):
            self._kinds.append(kind)
        return number

    def number_of(self, id: str) -> int:
        """The number of the event with that id.

        Raises:
            KeyError: There is none.
        """
        number: int = _decode(self._rows[_packed(id)])[0]
        return number

    def event(self, session_id: str, number: int) -> Event:
        """The event with that number, made again."""
        id = self._ids[number - 1]
        kind = self._kinds[self._kind_of[number - 1]]
        _, data, metadata, correlation_id = _decode(self._rows[id])
        return Event(
            id=id if isinstance(id, str) else "evt_" + id.hex(),
            type=kind.type,
            session_id=session_id,
            run_id=kind.run_id,
            timestamp=_EPOCH + timedelta(microseconds=self._times[number - 1]),
            data=data,
            metadata=metadata,
            sequence_number=number,
            schema_version=kind.schema_version,
            provider=kind.provider,
            correlation_id=correlation_id,
        )

    def emptied(self) -> Iterator[None]:
        """Give up what it holds, a piece at each step: to free a million rows at once takes 50 ms.

        Not while it is being read; then it ends at once, and the last reader frees it.
        """
        if self._readers:
            return
        self._readers = None
        while self._rows:
            del self._ids[-_PIECE:]
            for _ in range(min(_PIECE, len(self._rows))):
                self._rows.popitem()
            yield

    async def read(self, session_id: str, head: int, filter: EventFilter) -> list[Event] | None:
        """What the filter picks from the events up to `head`, whatever happens to the log meanwhile.

        None: it is being emptied.
        """
        if self._readers is None:
            return None
        if filter.matches_nothing:
            return []
        self._readers += 1
        try:
            return await self._picked(session_id, head, filter)
        finally:
            self._readers -= 1  # it is not emptied meanwhile

    async def _picked(self, session_id: str, head: int, filter: EventFilter) -> list[Event]:
        events: list[Event] = []
        room = filter.max_bytes
        pace = Pace()
        candidates = self.candidates(filter, head)
        while numbers := list(islice(candidates, _SLICE)):
            for number in self.matching(numbers, filter):
                event = self.event(session_id, number)
                if room is not None:
                    room -= byte_size(event)
                    if room < 0 and events:
                        return events
                events.append(event)
                if len(events) == filter.limit:
                    return events
                if pace.is_over:
                    await pace.rest()
            if pace.is_over:
                await pace.rest()
        return events

    def candidates(self, filter: EventFilter, head: int) -> Iterator[int]:
        """Numbers up to `head`, in the filter's order, among which are all that it matches.

        It is lazy, and stays right while the log grows: a page costs what is in it, wherever in the
        log it lies.
        """
        index = self._index
        low = filter.after + 1
        if filter.since is not None:
            since = _microseconds(filter.since)
            if self._latest <= since:
                return iter(())
            if index is not None:
                low = max(low, bisect_right(index.latest_by_block, since) * _BLOCK + 1)
        high = head if filter.before is None else min(head, filter.before - 1)
        newest_first = filter.order == "desc"
        choices: list[list[tuple[array[int], range]]] = []
        if index is not None and filter.run_ids is not None:
            choices.append(_spans(index.by_run, filter.run_ids, low, high))
        if index is not None and filter.types is not None:
            choices.append(_spans(index.by_type, filter.types, low, high))
        if not choices:
            numbers = range(low, high + 1)
            return iter(reversed(numbers) if newest_first else numbers)
        spans = min(choices, key=lambda spans: sum(len(places) for _, places in spans))
        streams = [
            map(found.__getitem__, reversed(places) if newest_first else places) for found, places in spans
        ]
        return streams[0] if len(streams) == 1 else merge(*streams, reverse=newest_first)

    def matching(self, numbers: Iterable[int], filter: EventFilter) -> list[int]:
        """Those of the candidates that the filter matches."""
        found = list(numbers)
        if filter.run_ids is not None or filter.types is not None:
            found = [number for number in found if _matches(self._kinds[self._kind_of[number - 1]], filter)]
        if filter.since is not None:
            since = _microseconds(filter.since)
            found = [number for number in found if self._times[number - 1] > since]
        return found


def _matches(kind: _Kind, filter: EventFilter) -> bool:
    return (filter.run_ids is None or kind.run_id in filter.run_ids) and (
        filter.types is None or kind.type in filter.types
    )


def _indexed(index: dict[K, array[int]], key: K, number: int) -> None:
    numbers = index.get(key)
    if numbers is None:
        index[key] = array("I", (number,))
    else:
        numbers.append(number)


def _spans(
    index: dict[K, array[int]], keys: Iterable[K], low: int, high: int
) -> list[tuple[array[int], range]]:
    """For each key its numbers, and at which places among them those from `low` to `high` stand."""
    return [
        (numbers, range(bisect_left(numbers, low), bisect_right(numbers, high)))
        for numbers in (index.get(key) for key in keys)
        if numbers is not None
    ]


def _packed(id: str) -> str | bytes:
    """The 16 bytes of an id that this library made; another id as it is."""
    if len(id) == 36 and id.startswith("evt_"):
        digits = id[4:]
        try:
            packed = bytes.fromhex(digits)
        except ValueError:
            return id
        if packed.hex() == digits:
            return packed
    return id


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND
