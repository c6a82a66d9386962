"""Long work on the event loop, in pieces between which others have their turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from time import perf_counter
from typing import Any, TypeVar

from asm_runtime.payload import is_large
from asm_runtime.records import Event, Run, Session

__all__ = ["FEW", "Pace", "in_turn", "in_turns", "paced"]

T = TypeVar("T")
U = TypeVar("U")

FEW = 64
"""So many records are no long work: they are worth no look at the clock."""

AT_ONCE = 16
"""How many that are not large are done between two looks at the clock. They take 50 µs if they are small, and
10 ms if each is all but large."""

STRETCH_SECONDS = 0.002
"""How long others wait at most. By the clock: how long a record takes depends on what is in it."""


class Pace:
    """Tells when a stretch of work has been long enough."""

    __slots__ = ("_began",)

    def __init__(self) -> None:
        self._began = perf_counter()

    @property
    def is_over(self) -> bool:
        """Whether it is time for `rest`."""
        return perf_counter() - self._began > STRETCH_SECONDS

    async def rest(self) -> None:
        """Let the loop turn; then the next stretch begins."""
        await asyncio.sleep(0)
        self._began = perf_counter()


async def in_turn(function: Callable[[T], U], item: T, *, large: Callable[[T], U] | None = None) -> U:
    """The function's result for an item; a record with a large payload has it made in a thread.

    Args:
        function: What is to be done.
        item: With what.
        large: What is done with a large record; None: the same.
    """
    return await asyncio.to_thread(large or function, item) if _is_large(item) else function(item)


async def in_turns(
    function: Callable[[T], U],
    items: Sequence[T],
    *,
    large: Callable[[T], U] | None = None,
    few: Callable[[Sequence[T]], list[U]] | None = None,
) -> list[U]:
    """The function's results for the items as they are now, each as of `in_turn`.

    Args:
        function: What is to be done with one.
        items: With what.
        large: What is done with a large record; None: the same.
        few: The function for several that are not large; None: for one after another.
    """
    results: list[U] = []
    pace = Pace()
    items = tuple(items)
    for start in range(0, len(items), AT_ONCE):
        if start and pace.is_over:
            await pace.rest()
        some = items[start : start + AT_ONCE]
        if any(map(_is_large, some)):
            for item in some:
                results.append(await in_turn(function, item, large=large))
        elif few is None:
            results += map(function, some)
        else:
            results += few(some)
    return results


async def paced(items: Iterable[T]) -> AsyncIterator[T]:
    """The items, with turns for others between them."""
    pace = Pace()
    for number, item in enumerate(items):
        if not number % AT_ONCE and pace.is_over:
            await pace.rest()
        yield item


def _is_large(item: Any) -> bool:
    """Whether it is a record with a payload that takes long to copy or encode."""
    if isinstance(item, Event):
        return is_large(item.data) or (bool(item.metadata) and is_large(item.metadata))
    if isinstance(item, Run):
        return any(map(is_large, (item.input, item.output, item.metadata, item.provider_metadata)))
    return isinstance(item, Session) and any(map(is_large, (item.context, item.metadata)))
