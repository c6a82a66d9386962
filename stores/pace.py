"""Long work on the event loop, in pieces between which others have their turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TypeVar

__all__ = ["FEW", "Pace", "in_turns"]

T = TypeVar("T")
U = TypeVar("U")

FEW = 64
"""So many records are no long work: they are worth no look at the clock."""

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


async def in_turns(function: Callable[[T], U], items: Sequence[T]) -> list[U]:
    """The function's results for the items as they are now."""
    if len(items) <= FEW:
        return [function(item) for item in items]
    results: list[U] = []
    pace = Pace()
    for item in tuple(items):
        results.append(function(item))
        if pace.is_over:
            await pace.rest()
    return results
