"""Which events of a session a reader wants."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from itertools import accumulate
from typing import Any, cast

import msgspec

from asm_runtime import options
from asm_runtime.payload import encode
from asm_runtime.ports import Order
from asm_runtime.records import Event, EventType

__all__ = ["EventFilter", "byte_size"]


class EventFilter(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Which events of a session a reader wants, how many and in which order."""

    run_ids: frozenset[str] | None = None
    types: frozenset[EventType] | None = None
    since: datetime | None = None
    after: int = 0
    before: int | None = None
    limit: int | None = None
    max_bytes: int | None = None
    order: Order = "asc"

    @classmethod
    def checked(
        cls,
        *,
        run_id: Any = None,
        type: Any = None,
        since: Any = None,
        after: Any = None,
        before: Any = None,
        limit: Any = None,
        max_bytes: Any = None,
        order: Any = "asc",
        wait_timeout_ms: Any = 0,
    ) -> EventFilter:
        """The filter that the arguments of `SessionStore.get_events` mean.

        `wait_timeout_ms` is no part of it; it is checked with the rest.

        Raises:
            ValidationError: One of them is not what is allowed.
        """
        options.integer("wait_timeout_ms", wait_timeout_ms, minimum=0)
        return cls(
            run_ids=options.identifiers("run_id", run_id),
            types=options.members("type", type, EventType),
            since=None if since is None else options.utc("since", since),
            after=options.integer("after", after, minimum=0, optional=True) or 0,
            before=options.integer("before", before, minimum=0, optional=True),
            limit=options.integer("limit", limit, minimum=1, optional=True),
            max_bytes=options.integer("max_bytes", max_bytes, minimum=1, optional=True),
            order=cast(Order, options.choice("order", order, ("asc", "desc"))),
        )

    @property
    def matches_nothing(self) -> bool:
        """Whether no event can ever match: there is nothing to read."""
        return (
            (self.run_ids is not None and not self.run_ids)
            or (self.types is not None and not self.types)
            or (self.before is not None and self.before <= self.after + 1)
        )

    def matches(self, event: Event) -> bool:
        """Whether that stored event is wanted."""
        return (
            cast(int, event.sequence_number) > self.after
            and (self.before is None or cast(int, event.sequence_number) < self.before)
            and (self.run_ids is None or event.run_id in self.run_ids)
            and (self.types is None or event.type in self.types)
            and (self.since is None or event.timestamp > self.since)
        )

    def pick(self, events: Iterable[Event]) -> list[Event]:
        """The wanted ones among stored events in ascending order, as many as wanted, in the wanted order."""
        wanted = [event for event in events if self.matches(event)]
        if self.order == "desc":
            wanted.reverse()
        wanted = wanted[: self.limit]
        if self.max_bytes is None:
            return wanted
        sizes = accumulate(map(byte_size, wanted))
        return wanted[: max(1, sum(size <= self.max_bytes for size in sizes))]


def byte_size(event: Event) -> int:
    """How many bytes an event has as JSON."""
    return len(encode(event))
