"""The mail of an actor: how letters come in, wait for room, and are handled one at a time."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Iterator
from itertools import chain, islice
from operator import length_hint
from time import monotonic
from types import CoroutineType
from typing import Any, TypeAlias, TypeVar, TypeVarTuple, cast, overload

from asm_runtime import options
from asm_runtime.errors import ActorStopped, MailboxFull

__all__ = ["DEFAULT_MAILBOX_LIMIT", "Letter", "Mailbox", "answer"]

Ts = TypeVarTuple("Ts")
T = TypeVar("T")

logger = logging.getLogger(__name__)

DEFAULT_MAILBOX_LIMIT = 10_000

_DRAIN_S = 0.002
_LETTERS_BY_THE_CLOCK = 64
"""How long a drain goes on before the loop has a turn, in seconds; after how many letters it looks."""

# Where an actor is in its life. Plain integers: the hot path compares them for every message.
# Stopping: what was accepted is still handled. Closing: `on_stop`, and the end of its tasks.
NEW, STARTING, RUNNING, STOPPING, CLOSING, STOPPED = range(6)

Letter: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], "asyncio.Future[Any] | None"]
"""One message: what to run, its arguments, and where the answer goes (None: nowhere)."""


class _Waiters:
    """Those who wait for more than the next drain; made when the first of them comes."""

    __slots__ = ("deferred", "idle", "room")

    def __init__(self) -> None:
        # The letters that wait for room, by the future that their sender awaits.
        self.room: OrderedDict[asyncio.Future[Any], Letter] | None = None
        # The calls that are answered when their handler likes.
        self.deferred: set[asyncio.Future[Any]] | None = None
        # A stop, until everything is handled.
        self.idle: asyncio.Future[None] | None = None


class Mailbox:
    """What arrives for an actor, and the drain that hands it on. `Actor` gives it a life."""

    __slots__ = (
        "__weakref__",
        "_busy",
        "_context",
        "_in_hand",
        "_loop",
        "_mail",
        "_mailbox_limit",
        "_phase",
        "_rest",
        "_scheduled",
        "_waiters",
    )

    def __init__(self, mailbox_limit: int) -> None:
        self._mailbox_limit: int = options.integer("mailbox_limit", mailbox_limit, minimum=1)
        # What has arrived, and what is left of the mail being handled. Lists: an empty deque has 700 bytes.
        self._mail: list[Letter] = []
        self._rest: Iterator[Letter] | None = None
        self._phase = NEW
        # Whether somebody will look at the mail anyway: a drain to come, the busy task's end, the start's.
        self._scheduled = False
        # The task that handles what a plain call cannot, and its letters.
        self._busy: asyncio.Future[Any] | None = None
        self._in_hand: list[Letter] | None = None
        self._waiters: _Waiters | None = None
        # Set by the start.
        self._loop: asyncio.AbstractEventLoop = cast(asyncio.AbstractEventLoop, None)
        self._context: contextvars.Context | None = None

    # -- what its owner does

    def crash(self, reason: BaseException) -> None:
        """End it as if a handler without a caller had raised `reason`. Idempotent."""
        raise NotImplementedError

    def _gone(self) -> ActorStopped:
        """What is told who sends a message that will not be handled."""
        raise NotImplementedError

    # -- messages

    @overload
    def call(self, handler: Callable[[*Ts], Coroutine[Any, Any, T]], /, *args: *Ts) -> asyncio.Future[T]: ...
    @overload
    def call(self, handler: Callable[[*Ts], T], /, *args: *Ts) -> asyncio.Future[T]: ...
    def call(self, handler: Callable[[*Ts], Any], /, *args: *Ts) -> asyncio.Future[Any]:
        """Have the actor run one of its handlers; await the answer.

        The message is sent by the call itself, and handled after those sent before it. If the mailbox
        is full it waits outside, first come, first served. A caller that is cancelled before its
        message is handled leaves nothing done; after that, the handler runs to its end.

        Raises:
            ActorStopped: The actor is not running, or ended before it answered.
            RuntimeError: A coroutine handler of this very actor cannot wait for its answer.
            Exception: What the handler raised.
        """
        # No coroutine on this path: it would cost a tenth of the round trip. What a busy actor is asked
        # is on it too: under load a store is always busy.
        if (
            self._phase != RUNNING
            or len(self._mail) >= self._mailbox_limit
            or (self._rest is not None and self._is_crowded())
            or (self._busy is not None and self._in_own_handler())
        ):
            return self._call_in_turn(handler, args)
        reply = self._loop.create_future()
        self._mail.append((handler, args, reply))
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._drain, context=self._context)
        return reply

    def call_deferred(
        self, handler: Callable[[asyncio.Future[T], *Ts], object], /, *args: *Ts
    ) -> asyncio.Future[T]:
        """Like `call`, but the handler answers when it likes.

        The handler is given the reply as its first argument and may keep it; `answer(reply, value)`
        answers, from anywhere on the loop. A caller that is cancelled cancels the reply: a done
        callback of it can tidy up. What is not answered when the actor ends gets `ActorStopped`.
        """
        if self._phase != RUNNING:
            return self._refusal()
        self._check_not_in_own_handler()
        reply: asyncio.Future[T] = self._loop.create_future()
        self._defer(reply)
        self._put_in_turn(reply, (_run_deferred, (handler, reply, args), None))
        return reply

    async def cast(self, handler: Callable[[*Ts], object], /, *args: *Ts) -> None:
        """Put a message that is not answered. A full mailbox suspends the caller.

        A caller that is cancelled while it waits for room has put nothing, or the whole message.

        Raises:
            ActorStopped: The actor is not running.
            MailboxFull: A coroutine handler of this very actor cannot wait for room.
        """
        if self._phase == RUNNING and self._is_crowded() and not self._in_own_handler():
            admitted = self._loop.create_future()
            self._put_in_turn(admitted, (handler, args, None))
            await admitted
        else:
            self.cast_nowait(handler, *args)

    def cast_nowait(self, handler: Callable[[*Ts], object], /, *args: *Ts) -> None:
        """Like `cast`, for callers that cannot wait.

        Raises:
            ActorStopped: The actor is not running.
            MailboxFull: There is no room.
        """
        if self._phase != RUNNING:
            raise self._gone()
        if self._waiting() >= self._mailbox_limit:
            raise MailboxFull(f"the mailbox of {self!r} holds {self._waiting()} messages")
        self._put((handler, args, None))

    # -- the end

    async def _until_idle(self) -> None:
        """Wait until everything that has arrived is handled."""
        if not self._is_idle():
            waiters = self._waiting_ones()
            waiters.idle = self._loop.create_future()
            await waiters.idle

    def _give_up(self) -> list[asyncio.Future[Any]]:
        """Handle nothing any more; returns who still waits."""
        mail, self._mail = self._mail, []
        # The rest of a drain is used up here: one that goes through it ends with this.
        letters = chain(self._in_hand or (), self._rest or (), mail)
        waiting = [
            reply for letter in letters if (reply := reply_of(letter)) is not None and not reply.done()
        ]
        waiters = self._waiters
        if waiters is not None:
            waiting += (
                future for future in chain(waiters.room or (), waiters.deferred or ()) if not future.done()
            )
            if waiters.idle is not None and not waiters.idle.done():
                waiters.idle.set_result(None)
        return waiting

    def _refuse(self, letters: Iterable[Letter]) -> None:
        for letter in letters:
            reply = reply_of(letter)
            if reply is not None and not reply.done():
                reply.set_exception(self._gone())

    def _refusal(self) -> asyncio.Future[Any]:
        """What a call to an actor that is not running gets."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        reply.set_exception(self._gone())
        return reply

    # -- into the mailbox

    def _waiting(self) -> int:
        return len(self._mail) if self._rest is None else len(self._mail) + length_hint(self._rest)

    def _is_crowded(self) -> bool:
        """Whether a letter must wait outside: there is no room, or others wait for it already."""
        return self._waiting() >= self._mailbox_limit or (
            self._waiters is not None and bool(self._waiters.room)
        )

    def _in_own_handler(self) -> bool:
        return self._busy is not None and self._busy is asyncio.current_task(self._loop)

    def _check_not_in_own_handler(self) -> None:
        if self._in_own_handler():
            raise RuntimeError("an actor cannot wait in its own handler for its own answer")

    def _call_in_turn(self, handler: Callable[..., Any], args: tuple[Any, ...]) -> asyncio.Future[Any]:
        if self._phase != RUNNING:
            return self._refusal()
        self._check_not_in_own_handler()
        reply = self._loop.create_future()
        self._put_in_turn(reply, (handler, args, reply))
        return reply

    def _put_in_turn(self, sender: asyncio.Future[Any], letter: Letter) -> None:
        """Put a letter, or have it wait for room; `sender` is what its sender awaits."""
        if not self._is_crowded():
            self._put(letter)
            return
        waiters = self._waiting_ones()
        if waiters.room is None:
            waiters.room = OrderedDict()
        waiters.room[sender] = letter
        # A sender that gives up leaves at once: a hung actor must not collect them.
        sender.add_done_callback(self._leave_room)

    def _leave_room(self, sender: asyncio.Future[Any]) -> None:
        waiters = self._waiters
        if waiters is not None and waiters.room is not None:
            waiters.room.pop(sender, None)

    def _admit(self, room: OrderedDict[asyncio.Future[Any], Letter]) -> None:
        """Let in those who wait outside, in their order.

        Only what cannot wait goes before them: a timer's letter, and what a plain handler of this very
        actor sends with `cast_nowait`.
        """
        free = self._mailbox_limit - self._waiting()
        while free > 0 and room:
            sender, letter = room.popitem(last=False)
            if sender.done():
                continue
            free -= 1
            self._put(letter)
            if reply_of(letter) is None:
                sender.set_result(None)

    def _put(self, letter: Letter) -> None:
        self._mail.append(letter)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and (self._mail or self._rest is not None):
            self._scheduled = True
            self._loop.call_soon(self._drain, context=self._context)

    # -- out of the mailbox

    def _drain(self) -> None:
        """Handle what has arrived; what arrives meanwhile is for a later turn, like what takes too long.

        It counts as scheduled until it has ended: a handler that mails its own actor must not have a
        second drain begin, beside the coroutine that this one may suspend for.
        """
        letters = self._rest
        if letters is None:
            mail, self._mail = self._mail, []
            letters = self._rest = iter(mail)
            some = letters if len(mail) <= _LETTERS_BY_THE_CLOCK else islice(letters, _LETTERS_BY_THE_CLOCK)
        else:
            some = islice(letters, _LETTERS_BY_THE_CLOCK)
        give_way_at = 0.0
        while True:
            for handler, args, reply in some:
                try:
                    if reply is None:
                        result = handler(*args)
                        if type(result) is not CoroutineType:
                            continue
                    else:
                        if reply.done():
                            continue  # its caller was cancelled: not begun
                        result = handler(*args)
                        if type(result) is not CoroutineType:
                            reply.set_result(result)
                            continue
                except Exception as error:
                    self._handler_raised((handler, args, reply), error)
                    continue
                except asyncio.CancelledError:
                    self._handler_cancelled((handler, args, reply))
                    continue
                except BaseException as error:
                    self.crash(error)
                    self._refuse([(handler, args, reply)])
                    raise
                if not length_hint(letters):
                    self._rest = None
                self._suspend(cast(Coroutine[Any, Any, Any], result), [(handler, args, reply)])
                return
            if some is letters or not length_hint(letters):
                self._rest = None
                break
            some = islice(letters, _LETTERS_BY_THE_CLOCK)
            now = monotonic()
            if not give_way_at:
                give_way_at = now + _DRAIN_S
            elif now >= give_way_at:
                break
        self._scheduled = False
        if self._mail or self._rest is not None:
            self._schedule()
        if self._waiters is not None:
            self._after_drain()

    def _suspend(self, work: Coroutine[Any, Any, Any] | asyncio.Future[Any], letters: list[Letter]) -> None:
        """Let a task handle what a plain call cannot; the mail after it waits."""
        if self._phase == STOPPED:  # the handler that made it has crashed the actor
            if isinstance(work, asyncio.Future):
                work.cancel()
            else:
                work.close()
            self._refuse(letters)
            return
        # The answer is given by the callback, not inside the task: a task that is cancelled before
        # its first step runs nothing at all.
        self._in_hand = letters
        self._scheduled = True
        if not isinstance(work, asyncio.Future):
            # As `start_task` does: an eager task would begin inside the drain, before it counts as busy.
            work = asyncio.Task(work, loop=self._loop, context=self._context)
        self._busy = work
        work.add_done_callback(self._resume, context=self._context)
        self._after_drain()

    def _resume(self, task: asyncio.Future[Any]) -> None:
        letters, self._in_hand = self._in_hand or [], None
        self._busy = None
        self._scheduled = False
        self._conclude(letters, task)
        self._schedule()
        self._after_drain()

    def _conclude(self, letters: list[Letter], task: asyncio.Future[Any]) -> None:
        """Hand on what the busy task made of its letters: in a plain actor, of the one."""
        (letter,) = letters
        if task.cancelled():
            self._handler_cancelled(letter)
        elif (error := task.exception()) is not None:
            self._handler_raised(letter, error)
        elif letter[2] is not None:
            answer(letter[2], task.result())

    def _handler_raised(self, letter: Letter, error: BaseException) -> None:
        """Tell its caller; without one it is a crash."""
        reply = reply_of(letter)
        if reply is not None and not reply.done():
            fail(reply, error)
        elif reply is not None and (reply.cancelled() or reply is letter[2]):
            if not isinstance(error, asyncio.InvalidStateError):  # else it was only too late to answer
                logger.error("a handler of %r failed after its caller had gone", self, exc_info=error)
        else:
            self._fail(error)

    def _handler_cancelled(self, letter: Letter) -> None:
        """It was cancelled, or met something that was: so is its call."""
        reply = reply_of(letter)
        if reply is not None:
            reply.cancel()
        else:
            self.crash(asyncio.CancelledError("a handler was cancelled"))

    def _after_drain(self) -> None:
        waiters = self._waiters
        if waiters is None:
            return
        if waiters.room:
            self._admit(waiters.room)
        if waiters.idle is not None and not waiters.idle.done() and self._is_idle():
            waiters.idle.set_result(None)

    def _is_idle(self) -> bool:
        return not self._mail and self._rest is None and self._busy is None

    def _fail(self, error: BaseException) -> None:
        """Crash: there is no caller to tell."""
        if self._phase == STOPPED:
            if not isinstance(error, ActorStopped):
                logger.error("something of %r failed after its end", self, exc_info=error)
        elif not (isinstance(error, ActorStopped) and self._phase > RUNNING):
            self.crash(error)
        # else the stop has cut off something of the actor's own from its mailbox

    def _defer(self, reply: asyncio.Future[Any]) -> None:
        waiters = self._waiting_ones()
        waiters.deferred = waiters.deferred or set()
        waiters.deferred.add(reply)
        reply.add_done_callback(waiters.deferred.discard)

    def _waiting_ones(self) -> _Waiters:
        waiters = self._waiters
        if waiters is None:
            waiters = self._waiters = _Waiters()
        return waiters


def answer(reply: asyncio.Future[T], value: T) -> bool:
    """Answer a deferred call; False if its caller is gone."""
    if reply.done():
        return False
    reply.set_result(value)
    return True


def _run_deferred(handler: Callable[..., Any], reply: asyncio.Future[Any], args: tuple[Any, ...]) -> Any:
    """The handler of a deferred call's letter; a coroutine that it returns is run by the drain."""
    return None if reply.done() else handler(reply, *args)


def reply_of(letter: Letter) -> asyncio.Future[Any] | None:
    """Who is to be told how it went."""
    handler, args, reply = letter
    return args[1] if handler is _run_deferred else reply


def is_withdrawn(letter: Letter) -> bool:
    """Whether its caller was cancelled."""
    reply = reply_of(letter)
    return reply is not None and reply.done()


def is_settled(letter: Letter) -> bool:
    """Whether nobody waits for its answer."""
    reply = reply_of(letter)
    return reply is None or reply.done()


def fail(reply: asyncio.Future[Any], error: BaseException) -> None:
    """Answer with an exception."""
    if isinstance(error, StopIteration):  # a future takes any exception but this one
        told = RuntimeError("a handler raised StopIteration")
        told.__cause__ = error
        error = told
    reply.set_exception(error)
