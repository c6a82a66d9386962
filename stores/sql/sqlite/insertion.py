"""The statement that inserts events: what it costs to write a log."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from asm_runtime.stores.sql.rows import EVENT_COLUMNS, EventRow

__all__ = ["INSERT_EVENT", "INSERT_SIZES", "SHARING", "insert_events", "insertion"]


_OFTEN_ALIKE = (
    ("session_id", "run_id"),
    ("type",),
    ("schema_version", "provider", "correlation_id", "metadata", "later_timestamp"),
)
"""Columns in which neighbouring events seldom differ, in groups that keep the number of statements small."""

_GROUPS = [[EVENT_COLUMNS.index(name) for name in group] for group in _OFTEN_ALIKE]


@lru_cache(maxsize=128)
def insert_events(count: int, alike: tuple[int, ...] = ()) -> str:
    """Insert that many events.

    FAIL instead of the default ABORT: to undo one statement alone SQLite would keep a journal of it,
    at half the speed; here any error undoes the whole transaction.

    Args:
        count: How many; the parameters are `alike`, then the other columns of one after another.
        alike: The columns, by number, that are the same for all of them.
    """
    own = [number for number in range(len(EVENT_COLUMNS)) if number not in alike]
    columns = ", ".join(EVENT_COLUMNS[number] for number in (*alike, *own))
    places = ", ".join([f"?{number}" for number in range(1, len(alike) + 1)] + ["?"] * len(own))
    return f"INSERT OR FAIL INTO asm_events ({columns}) VALUES " + ", ".join([f"({places})"] * count)


def insertion(
    rows: Sequence[EventRow], numbers: Sequence[int], later: Sequence[str | None]
) -> tuple[str, list[Any]]:
    """The statement that inserts events, and its parameters.

    What is the same in all of them is bound once: to bind 13 values a row takes longer than to insert it
    (2.7 us an event in batches of 50, 1.2 with 6 values).

    Args:
        rows: What was known of them.
        numbers: For each its place in the log.
        later: For each the latest time before it, if that is later than its own.
    """
    count = len(rows)
    columns: list[Sequence[Any]] = [*list(zip(*rows, strict=True))[:-1], numbers, later]
    alike: list[int] = []
    if count >= SHARING:
        for group in _GROUPS:
            if all(columns[number].count(columns[number][0]) == count for number in group):
                alike += group
    shared = [columns[number][0] for number in alike]
    own = [column for number, column in enumerate(columns) if number not in alike]
    return insert_events(count, tuple(alike)), [*shared, *chain.from_iterable(zip(*own, strict=True))]


INSERT_SIZES = (64, 32, 16, 8, 4, 2, 1)
"""How many events one statement inserts: few enough shapes for the statement cache, few steps for any
number of events. 64 rows have 832 parameters, below the 999 of old builds."""

SHARING = 4
"""From how many rows on it is worth to look for what they share."""

INSERT_EVENT = insert_events(1)
