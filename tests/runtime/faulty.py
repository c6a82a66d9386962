"""A real store behind a switch: calls can be made to fail, to hang, or be counted."""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from typing import Any


class FaultyStore:
    """Passes every call on, unless told otherwise.

    Attributes:
        calls: How often each method was called.
        failing: Method name → the exception that its calls raise.
        hanging: Names of methods whose calls wait until `heal()`.
    """

    def __init__(self, store: Any) -> None:
        self.store = store
        self.calls: Counter[str] = Counter()
        self.failing: dict[str, BaseException] = {}
        self.hanging: set[str] = set()
        self._healed = asyncio.Event()

    def heal(self) -> None:
        """Pass everything on again, also what hangs."""
        self.failing.clear()
        self.hanging.clear()
        self._healed.set()
        self._healed = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)
        if not inspect.iscoroutinefunction(method):
            return method

        async def passed_on(*args: Any, **options: Any) -> Any:
            self.calls[name] += 1
            if name in self.hanging:
                await self._healed.wait()
            if name in self.failing:
                raise self.failing[name]
            return await method(*args, **options)

        return passed_on
