"""A real store behind a switch: calls can be made to fail, to hang, to be late, or be counted."""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

from asm_runtime.testing import JumpingClock
from tests.runtime.support import until


class FaultyStore:
    """Passes every call on, unless told otherwise.

    Attributes:
        calls: How often each method was called.
        held: How many answers of each method were held back by `late`.
        failing: Method name → the exception that its calls raise.
        hanging: Names of methods whose calls wait until `heal()`.
        late: Names of methods that do their work at once and whose answers wait until `heal()`.
        shielding: Names of methods that, once called, see their work through before a cancellation leaves.
        asked: How many calls it works on now; those that wait for news are not counted.
        refusing: Method name → a function of the call's arguments that gives the exception to raise,
            or None.
    """

    def __init__(self, store: Any) -> None:
        self.store = store
        self.calls: Counter[str] = Counter()
        self.held: Counter[str] = Counter()
        self.failing: dict[str, BaseException] = {}
        self.hanging: set[str] = set()
        self.late: set[str] = set()
        self.shielding: set[str] = set()
        self.refusing: dict[str, Callable[..., BaseException | None]] = {}
        self.asked = 0
        self._healed = asyncio.Event()

    def heal(self) -> None:
        """Pass everything on again, also what hangs."""
        self.failing.clear()
        self.refusing.clear()
        self.go_on()

    def go_on(self) -> None:
        """Have what hangs go on, or fail."""
        self.hanging.clear()
        self.late.clear()
        self._healed.set()
        self._healed = asyncio.Event()

    async def time_passes(self, clock: JumpingClock, over: asyncio.Future[Any]) -> None:
        """Let time pass until that is done, but hardly any while the store works: that takes real time."""
        while not over.done():
            await until(lambda: not self.asked)
            await clock.advance_ms(50)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)
        if not inspect.iscoroutinefunction(method):
            return method

        def waits(options: dict[str, Any]) -> bool:
            return name == "wait_for_runs" or bool(options.get("wait_timeout_ms"))

        async def counted(args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            self.asked += 1
            try:
                return await method(*args, **options)
            finally:
                self.asked -= 1

        async def work(*args: Any, **options: Any) -> Any:
            if name in self.hanging:
                await self._healed.wait()
            if name in self.failing:
                raise self.failing[name]
            if name in self.refusing and (refusal := self.refusing[name](*args, **options)) is not None:
                raise refusal
            answer = await (method(*args, **options) if waits(options) else counted(args, options))
            if name in self.late:
                self.held[name] += 1
                await self._healed.wait()
            return answer

        async def passed_on(*args: Any, **options: Any) -> Any:
            self.calls[name] += 1
            if name not in self.shielding:
                return await work(*args, **options)
            task = asyncio.ensure_future(work(*args, **options))
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                while not task.done():
                    try:
                        await asyncio.wait([task])
                    except asyncio.CancelledError:
                        continue
                raise

        return passed_on
