"""What deleted sessions have left, removed bit by bit while others write."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from itertools import islice
from typing import Any

from asm_runtime.clock import Clock, sleep
from asm_runtime.errors import ActorStopped, StoreError

__all__ = ["Removals"]

logger = logging.getLogger(__name__)

AT_ONCE = 64
"""How many sessions one step is about: it goes through those that have little left."""

PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 60.0
"""How long it rests after a step that failed; the pause doubles."""


class Removals:
    """Removes what deleted sessions have left, a step in each of the next groups of writes.

    The sessions whose callers wait come first, in turn; then those that others have left: a process that
    died, a store that stopped. When the database refuses, callers are let go, since the session is gone
    all the same, and it goes on after a pause.

    Args:
        find: A few sessions that have left something, in the order of their ids, past an id.
        remove: Does one step for some of them; returns those that have nothing left.
        spawn: Starts the task that works, while there is something to do.
        clock: For the pauses.
    """

    def __init__(
        self,
        *,
        find: Callable[[str, int], Awaitable[list[str]]],
        remove: Callable[[list[str]], Awaitable[list[str]]],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        clock: Clock,
    ) -> None:
        self._find = find
        self._remove = remove
        self._spawn = spawn
        self._clock = clock
        self._answers: dict[str, asyncio.Future[None]] = {}
        """Of the callers, by session, in the order of their turns."""
        self._past = ""
        """The last of the others' sessions that a step began with."""
        self._begun = False
        """Whether there may be something to do that was not looked for yet."""
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """See to it that what anybody has left is removed. Idempotent; without effect on a stopped store."""
        self._begun = True
        if self._task is None or self._task.done():
            with suppress(ActorStopped):
                self._task = self._spawn(self._work())
                self._task.add_done_callback(self._worked)

    async def ended(self, session_id: str) -> None:
        """Return when the session has nothing left, or when that has to wait, or the store stops."""
        self.begin()
        if self._task is None or self._task.done():
            return
        answer = self._answers.get(session_id)
        if answer is None:
            answer = self._answers[session_id] = asyncio.get_running_loop().create_future()
        await asyncio.wait([answer])

    async def _work(self) -> None:
        pause, at_once = PAUSE_SECONDS, AT_ONCE
        try:
            while self._answers or self._begun:
                try:
                    session_ids = await self._next(at_once)
                    if session_ids:
                        self._answer(*await self._remove(session_ids))
                        pause = PAUSE_SECONDS
                except StoreError as error:
                    logger.warning("what deleted sessions have left is still there: %s", error)
                    self._answer(*self._answers)
                    self._begun = True
                    at_once = 1  # so that one that cannot be removed holds up no others
                    await sleep(self._clock, pause)
                    pause = min(2 * pause, MAX_PAUSE_SECONDS)
        except ActorStopped:
            pass  # the next store that opens the database goes on
        finally:
            self._worked(self._task)

    def _worked(self, task: asyncio.Task[None] | None) -> None:
        """Let callers go. Also of a task that was cancelled before its first step."""
        if self._task is task:
            self._task = None
            self._answer(*self._answers)

    async def _next(self, count: int) -> list[str]:
        """The sessions whose turn it is; empty: nothing is left."""
        if self._answers:
            session_ids = list(islice(self._answers, count))
            # The next step begins with the next one: the first may take all that a step can do.
            self._answers[session_ids[0]] = self._answers.pop(session_ids[0])
            return session_ids
        past, self._past, self._begun = self._past, "", False
        session_ids = await self._find(past, count)
        if session_ids:
            self._past = session_ids[0]
        self._begun = self._begun or bool(session_ids or past)
        return session_ids

    def _answer(self, *session_ids: str) -> None:
        for session_id in session_ids:
            answer = self._answers.pop(session_id, None)
            if answer is not None:
                answer.set_result(None)
