"""SQLite connections on threads of their own.

A function handed to a thread has its connection to itself and runs any number of statements there:
one hop to the thread and back for a whole batch. A connection that belongs to several threads at
once, or to a pool, would need a hop, or a lock, for each statement.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias, TypeVar, TypeVarTuple

from asm_runtime.errors import ActorStopped
from asm_runtime.stores.sql.sqlite import forks, workers

__all__ = ["ConnectionThreads"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_Job: TypeAlias = "tuple[Callable[..., Any], tuple[Any, ...], asyncio.Future[Any]]"


class ConnectionThreads:
    """Threads that each hold a connection and take jobs from one queue, first come first served.

    A thread is started, and connects, for a job that finds all others at work. The queue is as long
    as there are callers that wait: to bound it, limit the callers.

    Args:
        connect: Makes a thread's connection, in that thread.
        disconnect: Closes it there.
        count: How many threads there may be.
        name: What the threads are called.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        disconnect: Callable[[sqlite3.Connection], None] = sqlite3.Connection.close,
        *,
        count: int = 1,
        name: str,
    ) -> None:
        self._connect = connect
        self._disconnect = disconnect
        self._count = count
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._running: set[asyncio.Future[None]] = set()
        """One for each thread, done when it has ended."""
        self._lives: list[threading.Lock] = []
        """For each, held until then."""
        self._unanswered = 0
        self._cursors: set[sqlite3.Cursor] = set()
        self.closing = False
        """Whether no more jobs are taken."""
        forks.keep(self)

    def run(self, job: Callable[[sqlite3.Cursor, *Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """Have a thread call `job(cursor, *args)`; await the answer.

        A thread has one cursor: what a job leaves unread ends with the next job's first statement.

        A caller that is cancelled gives up the answer; the job runs to its end.

        Raises:
            ActorStopped: The threads are closing.
            Exception: What the job raised; or `connect`, if there is no connection at all.
        """
        if self.closing:
            raise ActorStopped(f"{self._name} has closed")
        answer: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put((job, args, answer))
        self._unanswered += 1
        if len(self._running) < min(self._unanswered, self._count):
            self._start_thread()
        return answer

    async def close(self) -> None:
        """Run the jobs that wait, then close the connections. Idempotent."""
        self.close_soon()
        if self._running:
            await asyncio.wait(set(self._running))

    def close_soon(self) -> None:
        """Begin to close, and wait for nothing."""
        if not self.closing:
            self.closing = True
            for _ in self._running:
                self._jobs.put(None)

    @property
    def at_work(self) -> bool:
        """Whether there is a thread that has not ended."""
        return bool(self._running)

    def join(self) -> None:
        """Wait, in another thread, until all have ended; they are closing."""
        for life in self._lives:
            with life:
                pass

    def leave_to_parent(self) -> None:
        """See `forks.Inheritable`."""
        self.closing = True
        for cursor in self._cursors:  # and its connection with it
            forks.never_free(cursor)

    def _start_thread(self) -> None:
        ended: asyncio.Future[None] = self._loop.create_future()
        self._running.add(ended)
        life = threading.Lock()
        life.acquire()
        self._lives = [*(one for one in self._lives if one.locked()), life]

        def work() -> Exception | None:
            try:
                return self._work()
            finally:
                life.release()

        workers.start(self._name, work, lambda error: self._in_loop(self._ended, ended, error))

    def _work(self) -> Exception | None:
        """Serve until the close; the error, if there is no connection."""
        working = forks.Working()
        try:
            with working:
                cursor = self._connect().cursor()
                self._cursors.add(cursor)
        except Exception as error:
            return error
        while self._serve_one(cursor, working):
            pass
        with working:
            self._cursors.discard(cursor)
            self._disconnect(cursor.connection)
        return None

    def _serve_one(self, cursor: sqlite3.Cursor, working: forks.Working) -> bool:
        """In a frame of its own: what a job leaves behind must not live until the next one comes."""
        job = self._jobs.get()
        if job is None:
            return False
        call, args, answer = job
        try:
            with working:
                result = call(cursor, *args)
        except BaseException as error:
            self._in_loop(self._settle, answer, None, error)
        else:
            self._in_loop(self._settle, answer, result, None)
        return True

    def _in_loop(self, callback: Callable[[*Ts], None], *args: *Ts) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(callback, *args)

    def _settle(self, answer: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._unanswered -= 1
        if answer.done():
            return
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)

    def _ended(self, ended: asyncio.Future[None], error: Exception | None) -> None:
        self._running.discard(ended)
        ended.set_result(None)
        # Others that are connected do the jobs of one that is not.
        while error is not None and not self._running:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                return
            if job is not None:
                self._settle(job[2], None, error)
