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
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar, TypeVarTuple

from asm_runtime.errors import ActorStopped

__all__ = ["ConnectionThreads"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_Job: TypeAlias = "tuple[Callable[..., Any], tuple[Any, ...], asyncio.Future[Any]]"


class ConnectionThreads:
    """Threads that each hold a connection and take jobs from one queue, first come first served.

    The queue is as long as there are callers that wait: whoever wants a bound limits those.

    Args:
        connect: Makes a thread's connection, in that thread.
        count: How many threads.
        name: What the threads are called.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection], *, count: int = 1, name: str) -> None:
        self._connect = connect
        self._count = count
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._ended: list[asyncio.Future[None]] = []
        self.closing = False
        """Whether no more jobs are taken."""

    async def open(self) -> None:
        """Start the threads and their connections. One that fails leaves no thread behind.

        Raises:
            sqlite3.Error: What `connect` raised.
        """
        opened: list[asyncio.Future[None]] = []
        for number in range(self._count):
            ready, ended = self._loop.create_future(), self._loop.create_future()
            opened.append(ready)
            self._ended.append(ended)
            # A daemon: a program that forgets to stop its store must still be able to end.
            threading.Thread(
                target=self._work, args=(ready, ended), name=f"{self._name}-{number}", daemon=True
            ).start()
        try:
            await asyncio.gather(*opened)
        except BaseException:
            await asyncio.wait(opened)
            await self.close()
            raise

    def run(self, job: Callable[[sqlite3.Cursor, *Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """Have a thread call `job(cursor, *args)`; await the answer.

        A thread has one cursor: what a job leaves unread ends with the next job's first statement.

        A caller that is cancelled gives up the answer; the job runs to its end.

        Raises:
            ActorStopped: The threads are closing.
            Exception: What the job raised.
        """
        if self.closing:
            raise ActorStopped(f"{self._name} has closed")
        answer: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put((job, args, answer))
        return answer

    async def close(self) -> None:
        """Run the jobs that wait, then close the connections. Idempotent."""
        self.close_soon()
        if self._ended:
            await asyncio.shield(asyncio.wait(self._ended))

    def close_soon(self) -> None:
        """Begin to close, and wait for nothing."""
        if not self.closing:
            self.closing = True
            for _ in range(self._count):
                self._jobs.put(None)

    def _work(self, ready: asyncio.Future[None], ended: asyncio.Future[None]) -> None:
        try:
            connection = self._connect()
        except Exception as error:
            self._tell(ready, None, error)
        else:
            self._tell(ready, None, None)
            try:
                cursor = connection.cursor()
                while self._serve_one(cursor):
                    pass
            finally:
                connection.close()
        finally:
            self._tell(ended, None, None)

    def _serve_one(self, cursor: sqlite3.Cursor) -> bool:
        """In a frame of its own: what a job leaves behind must not live until the next one comes."""
        job = self._jobs.get()
        if job is None:
            return False
        call, args, answer = job
        try:
            result = call(cursor, *args)
        except BaseException as error:
            self._tell(answer, None, error)
        else:
            self._tell(answer, result, None)
        return True

    def _tell(self, answer: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        try:
            self._loop.call_soon_threadsafe(_settle, answer, result, error)
        except RuntimeError:  # the loop is closed: nobody waits any more
            pass


def _settle(answer: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)
