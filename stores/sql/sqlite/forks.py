"""What a forked process leaves to its parent.

SQLite notes in memory which locks its process has on a file. A fork copies the notes and not the
locks: a connection that the child opens on such a file relies on locks that it does not have. The
parent's last close then deletes the write-ahead log under it, and what the child commits from there
on is lost. To close an inherited connection is no better: by then the log may be that of others.

So a child is refused the files that were open at the fork, never closes or frees an inherited
connection, and closes inherited lock files at once, for they would keep a dead parent alive.

Before a fork our threads come to rest: a mutex of SQLite that one of them holds would stay locked
for ever in the child, which has no such thread.

Source: sqlite.org/howtocorrupt.html, section 2.6.
"""

from __future__ import annotations

import os
import stat
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Protocol

from asm_runtime.errors import StoreError

__all__ = ["REMEDY", "WAITING", "Inheritable", "Working", "keep", "never_free", "refuse_inherited"]

REMEDY = "start processes with the `spawn` or `forkserver` method, or open the database after the fork"

REST_SECONDS = 30.0
"""How long a fork waits for our threads. A disk may be slow; one that takes longer than that is broken,
and then the parent is better off than the child."""

WAITING_SECONDS = 1.0
"""After how long a thread that may wait for a lock of another process is taken to wait for it. It holds
no mutex then that the child would miss."""

LOOK_SECONDS = 0.05
"""How often a fork looks whether a thread only waits."""


class Inheritable(Protocol):
    """Something that a forked child finds in its memory and that belongs to its parent."""

    def leave_to_parent(self) -> None:
        """Give it up, in the child: wait for nothing, and close nothing that the parent uses."""
        ...


def keep(thing: Inheritable) -> None:
    """Have a thing given up in a forked child. It is held weakly."""
    _things[weakref.ref(thing, _things.pop)] = None


class Working:
    """Entered by a thread while it is inside SQLite or opens files: a fork waits until it leaves."""

    def __init__(self) -> None:
        self.waits_since: float | None = None
        """When the thread came to where it may wait for a lock of another process; None: it is not there."""
        self._lock = threading.Lock()
        _note(self)

    def __enter__(self) -> None:
        if _forking.locked():
            with _forking:  # else a busy thread takes its lock again, time after time, before the fork does
                pass
        self._lock.acquire()
        _of_thread.working = self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def rest(self, deadline: float) -> bool:
        """Keep the thread from working until `go_on`, once it has left.

        Returns:
            Whether it has.
        """
        while not self._lock.acquire(timeout=LOOK_SECONDS):
            now, since = time.monotonic(), self.waits_since
            if now > deadline or (since is not None and now - since > WAITING_SECONDS):
                return False
        return True

    def go_on(self) -> None:
        """Let the thread work."""
        self._lock.release()


def _note(working: Working) -> None:
    _workings[weakref.ref(working, _workings.pop)] = None


class _Waiting:
    """Entered by a thread where it may wait for a lock of another process, for as long as that likes."""

    def __enter__(self) -> None:
        self._note(time.monotonic())

    def __exit__(self, *_: object) -> None:
        self._note(None)

    def _note(self, since: float | None) -> None:
        working: Working | None = getattr(_of_thread, "working", None)
        if working is not None:
            working.waits_since = since


WAITING = _Waiting()


def refuse_inherited(path: str, database: str) -> None:
    """See that a file was not open when this process was forked.

    Args:
        path: The database file; it may be missing.
        database: What names it in the error.

    Raises:
        StoreError: It was.
    """
    if not _inherited:
        return
    try:
        found = os.stat(path)
    except OSError:
        return
    if (found.st_dev, found.st_ino) in _inherited:
        raise StoreError(
            f"{database} was open when this process was forked, and its locks belong to the parent: {REMEDY}",
            details={"database": database},
        )


def never_free(thing: object) -> None:
    """Keep an object for ever, past the end of the interpreter, which frees everything else."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


_things: dict[weakref.ref[Inheritable], None] = {}
_workings: dict[weakref.ref[Working], None] = {}
_of_thread = threading.local()
_inherited: set[tuple[int, int]] = set()
"""Device and number of the files that were open at a fork that led to this process."""

_forking = threading.Lock()
_resting: list[Working] = []


def _before() -> None:
    _forking.acquire()
    deadline = time.monotonic() + REST_SECONDS
    for reference in list(_workings):
        working = reference()
        if working is not None and working.rest(deadline):
            _resting.append(working)


def _after_in_parent() -> None:
    while _resting:
        _resting.pop().go_on()
    _forking.release()


def _after_in_child() -> None:
    global _forking
    _forking = threading.Lock()
    _resting.clear()
    _workings.clear()
    _inherited.update(_open_files())
    for reference in list(_things):
        thing = reference()
        if thing is not None:
            thing.leave_to_parent()
    _things.clear()


def _open_files() -> Iterator[tuple[int, int]]:
    """The regular files that this process has open, also those that others opened."""
    try:
        descriptors = os.listdir("/dev/fd")
    except OSError:
        return
    for descriptor in descriptors:
        try:
            found = os.fstat(int(descriptor))
        except OSError:  # that of the listing itself
            continue
        if stat.S_ISREG(found.st_mode):
            yield found.st_dev, found.st_ino


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
