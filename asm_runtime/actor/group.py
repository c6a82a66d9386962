"""An actor that handles its mail in groups."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from asm_runtime.actor.actor import Actor
from asm_runtime.actor.mailbox import Letter, fail, is_settled, is_withdrawn, reply_of

__all__ = ["GroupActor"]

logger = logging.getLogger(__name__)


class GroupActor(Actor):
    """An actor that is handed everything that waits in its mailbox as one group.

    While a group is handled the mail piles up, and the next group is as large as the last one took
    long: under load, the cost that a group has once is shared by all its letters.
    """

    __slots__ = ()

    def handle_group(self, letters: list[Letter]) -> Coroutine[Any, Any, None] | asyncio.Future[None]:
        """Handle all letters, and answer each that has a reply.

        A coroutine is run in a task. A plain handler that returns a future spares that, and a turn of
        the loop: the group ends when the future is done.

        A reply may be kept and answered later, like a deferred one. What this raises, the unanswered
        letters of the group get; the actor goes on.
        """
        raise NotImplementedError

    def take(self) -> list[Letter]:
        """For `handle_group`: what has arrived meanwhile, as a part of the group from now on.

        So a handler can set the next piece of slow work going before it answers the one that is done.
        """
        if not self._mail:
            return []
        more = self._taken_mail()
        unanswered = [letter for letter in self._in_hand or () if not is_settled(letter)]
        self._in_hand = unanswered + more
        self._after_drain()
        return more

    def _taken_mail(self) -> list[Letter]:
        mail, self._mail = self._mail, []
        return [letter for letter in mail if not is_withdrawn(letter)]

    def _drain(self) -> None:
        letters = self._taken_mail()
        if not letters:
            self._scheduled = False
            self._after_drain()
            return
        self._in_hand = letters  # a plain handler may take more, or end the actor
        try:
            work = self.handle_group(letters)
        except Exception as error:
            work = self._loop.create_future()
            work.set_exception(error)
        except asyncio.CancelledError:
            work = self._loop.create_future()
            work.cancel()
        except BaseException as error:
            self.crash(error)
            raise
        self._suspend(work, self._in_hand)

    def _conclude(self, letters: list[Letter], task: asyncio.Future[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("%r failed to handle a group of %d", self, len(letters), exc_info=error)
        for letter in letters:
            reply = reply_of(letter)
            if reply is None or reply.done():
                continue
            if task.cancelled():
                reply.cancel()
            elif error is not None:
                fail(reply, error)
            else:
                self._defer(reply)
