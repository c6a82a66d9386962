"""Threads that are used again.

To start one takes as long as to open a database file, and its memory is cold: who opens a file, reads the
end of a log and closes it would spend a third of the time on that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias, TypeVar

__all__ = ["start"]

KEPT = 4
"""How many idle threads are kept."""

IDLE_SECONDS = 5.0
"""For how long."""

T = TypeVar("T")

_Order: TypeAlias = "tuple[str, Callable[[], Any], Callable[[Any], None]]"


def start(name: str, work: Callable[[], T], then: Callable[[T | None], None]) -> None:
    """Do work in a thread.

    Args:
        name: What the thread is called meanwhile.
        work: What to do.
        then: Is told what `work` has returned, None if it has raised. By then the thread can be used again.
    """
    order = name, work, then
    while _idle:
        try:
            worker = _idle.pop()
        except IndexError:  # another thread was faster
            break
        if worker.is_alive():  # else this is a forked child, and it is the parent's
            worker.orders.put(order)
            return
    _Worker(order).start()


class _Worker(threading.Thread):
    def __init__(self, order: _Order) -> None:
        # A daemon: a program that forgets to stop its store must still be able to end.
        super().__init__(name=order[0], daemon=True)
        self.orders: SimpleQueue[_Order] = SimpleQueue()
        self.orders.put(order)

    def run(self) -> None:
        while self._carry_out_one():
            pass

    def _carry_out_one(self) -> bool:
        """In a frame of its own: an idle thread must not hold what it has worked on."""
        try:
            self.name, work, then = self.orders.get(timeout=IDLE_SECONDS)
        except Empty:
            try:
                _idle.remove(self)
            except ValueError:  # somebody has taken it in this very moment
                self.name, work, then = self.orders.get()
            else:
                return False
        result, is_kept = None, False
        try:
            result = work()
            is_kept = len(_idle) < KEPT
        finally:
            if is_kept:
                self.name = "asm-sqlite-idle"
                _idle.append(self)
            then(result)
        return is_kept


_idle: list[_Worker] = []
