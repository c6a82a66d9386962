"""Long work on the event loop, in pieces between which others have their turn."""

from __future__ import annotations

import asyncio
from time import perf_counter

__all__ = ["Pace"]

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
