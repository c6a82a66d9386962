"""Calls that have begun and not ended."""

from __future__ import annotations

import asyncio

__all__ = ["CallsUnderWay"]


class CallsUnderWay:
    """How many calls are between their beginning and their end."""

    def __init__(self) -> None:
        self._count = 0
        self._none: asyncio.Future[None] | None = None

    def __enter__(self) -> None:
        self._count += 1

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count and self._none is not None:
            self._none.set_result(None)

    async def ended(self) -> None:
        """Return when all have ended; no more begin."""
        if self._count:
            self._none = asyncio.get_running_loop().create_future()
            await self._none
