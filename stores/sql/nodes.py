"""Who is alive, told by locks of the operating system.

Each open store is a node and holds a lock on a file of its own, in a folder beside the database.
The lock goes when its process ends, however that ends: a killed node is known to be dead at once, a
frozen or sleeping one stays alive. No clocks and no process ids, so containers and reboots change
nothing. A node's name is never used again, so a file that is missing means a dead node as well.
"""

from __future__ import annotations

import os
import re
import sys
import time
import weakref
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from asm_runtime.errors import StoreUnavailable
from asm_runtime.ids import new_id

__all__ = ["Nodes"]

_NAME = re.compile(r"nod_[0-9a-f]{32}")
_OPENING = "opening"
_RETRY_SECONDS = 0.01

if sys.platform == "win32":
    import msvcrt

    _CAN_RENAME_OPEN_FILES = False

    def _lock(descriptor: int, *, shared: bool) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    _CAN_RENAME_OPEN_FILES = True

    def _lock(descriptor: int, *, shared: bool) -> bool:
        """Lock an open file if nobody else has it locked. Those who only look share the lock."""
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class Nodes:
    """The nodes of one database, this one among them.

    Everything here may touch the disk: to be called from a thread, not from the loop.

    Args:
        database: The database file; its nodes lie in `<database>-nodes/`.
    """

    def __init__(self, database: str) -> None:
        self._database = database
        self._own: tuple[Path, int] | None = None

    @cached_property
    def _folder(self) -> Path:
        """Beside the file itself, whatever links lead there."""
        return Path(os.path.realpath(self._database) + "-nodes")

    @contextmanager
    def opening(self, timeout_ms: int) -> Generator[None]:
        """Be the only process that makes the database ready.

        Raises:
            StoreUnavailable: Another one has been at it for `timeout_ms`.
        """
        self._folder.mkdir(exist_ok=True)
        descriptor = _opened(self._folder / _OPENING)
        try:
            deadline = time.monotonic() + timeout_ms / 1000
            while not _lock(descriptor, shared=False):
                if time.monotonic() > deadline:
                    raise StoreUnavailable(f"another process is preparing the database of {self._folder}")
                time.sleep(_RETRY_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def join(self, node_id: str) -> None:
        """Be a node; and tidy up after those that died."""
        self._folder.mkdir(exist_ok=True)
        path = self._folder / node_id
        # Made and locked under another name: a node that can be seen is locked. Where an open file
        # cannot be renamed, it cannot be removed either, so nobody tidies it up in between.
        hidden = self._folder / new_id("tmp_") if _CAN_RENAME_OPEN_FILES else path
        descriptor = _opened(hidden)
        try:
            _lock(descriptor, shared=False)
            if hidden != path:
                hidden.rename(path)
        except BaseException:
            os.close(descriptor)
            raise
        self._own = path, descriptor
        _held.add(self)
        self.dead([other.name for other in self._folder.iterdir() if _NAME.fullmatch(other.name)])

    def leave(self) -> None:
        """Be a node no longer. Idempotent."""
        if self._own is not None:
            path, descriptor = self._own
            self._own = None
            _held.discard(self)
            if _CAN_RENAME_OPEN_FILES:
                path.unlink(missing_ok=True)  # before it is unlocked: nobody else need look at it
                os.close(descriptor)
            else:
                os.close(descriptor)
                path.unlink(missing_ok=True)

    def dead(self, node_ids: Iterable[str]) -> list[str]:
        """Which of those nodes' processes do not hold their lock. The files of the dead are removed."""
        return [node_id for node_id in node_ids if not self._is_alive(node_id)]

    def _is_alive(self, node_id: str) -> bool:
        if not _NAME.fullmatch(node_id):
            return False  # no node's name: somebody wrote an owner by hand
        path = self._folder / node_id
        if self._own is not None and self._own[0] == path:
            return True
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            if not _lock(descriptor, shared=True):
                return True
            if _CAN_RENAME_OPEN_FILES:
                path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
        if not _CAN_RENAME_OPEN_FILES:
            path.unlink(missing_ok=True)
        return False

    def _forget_in_child(self) -> None:
        """A forked child shares its parent's locks, and must not keep them when the parent dies."""
        if self._own is not None:
            os.close(self._own[1])
            self._own = None


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


_held: weakref.WeakSet[Nodes] = weakref.WeakSet()


def _after_fork() -> None:
    for nodes in list(_held):
        nodes._forget_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
