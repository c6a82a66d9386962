"""Hands items from one task to another, one at a time."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

__all__ = ["Pipe"]

T = TypeVar("T")


class Pipe(Generic[T]):
    """An asynchronous iterator that somebody else feeds. It holds one item."""

    def __init__(self) -> None:
        self._items: list[T] = []
        self._error: BaseException | None = None
        self._has_ended = False
        self._has_left = False
        self._changed = asyncio.Event()

    async def give(self, item: T) -> bool:
        """Hand over an item, when the one before is taken; whether there still is somebody to take it."""
        while self._items and not self._has_left:
            await self._changed.wait()
        if self._has_left:
            return False
        self._items.append(item)
        self._change()
        return True

    def end(self) -> None:
        """Nothing follows."""
        self._has_ended = True
        self._change()

    def fail(self, error: BaseException) -> None:
        """Raise this where the next item is waited for."""
        self._error = error
        self._change()

    def leave(self, _: object = None) -> None:
        """Nobody takes items any more."""
        self._has_left = True
        self._change()

    def __aiter__(self) -> Pipe[T]:
        return self

    async def __anext__(self) -> T:
        while True:
            if self._error is not None:
                raise self._error
            if self._items:
                item = self._items.pop()
                self._change()
                return item
            if self._has_ended:
                raise StopAsyncIteration
            await self._changed.wait()

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
