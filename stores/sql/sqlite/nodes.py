"""Who is alive, told by locks of the operating system.

A store that executes runs is a node and holds a lock on a file of its own, in a folder beside the
database. The lock goes when its process ends, however that ends: a killed node is known to be dead at
once, a frozen or sleeping one stays alive. No clocks and no process ids, so containers and reboots
change nothing. A node's name is never used again, so a file that is missing means a dead node as well.

The files belong to the owner of the database, and are open to those who may write to it and to nobody
else: a user who can open a file can lock it, and would keep a dead node alive.
"""

from __future__ import annotations

import os
import re
import stat
import sys
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

from asm_runtime.errors import StoreUnavailable
from asm_runtime.stores.sql.sqlite import forks

__all__ = ["FOLDER", "Nodes", "make_folder"]

FOLDER = "-nodes"
"""Where the nodes of a database lie, after its path."""

_NAME = re.compile(r"nod_[0-9a-f]{32}")
_OPENING = "opening"
_RETRY_SECONDS = 0.01
_JOIN_TRIES = 100
_LOOK_SECONDS = 1.0

if sys.platform == "win32":
    import msvcrt

    _CAN_REMOVE_OPEN_FILES = False
    _NO_LINK = 0

    def _lock(descriptor: int, *, shared: bool = False) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _entrust(path: Path, database: os.stat_result) -> None:
        """Access is inherited from the folder."""

else:
    import fcntl

    _CAN_REMOVE_OPEN_FILES = True
    _NO_LINK = os.O_NOFOLLOW

    def _lock(descriptor: int, *, shared: bool = False) -> bool:
        """Lock an open file if nobody else has it locked. Those who only look share the lock."""
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _entrust(path: Path, database: os.stat_result) -> None:
        """Have a file or folder of ours belong to the database's owner, open to who may write to that."""
        descriptor = os.open(path, os.O_RDONLY | _NO_LINK)
        try:
            found = os.fstat(descriptor)
            everything = 0o7 if stat.S_ISDIR(found.st_mode) else 0o6
            mode = everything << 6
            for place in (3, 0):
                if database.st_mode >> place & 0o2:
                    mode |= everything << place
            # What somebody else made stays as it is; and not every file system has modes.
            with suppress(OSError):
                if stat.S_IMODE(found.st_mode) != mode:
                    os.fchmod(descriptor, mode)
                if found.st_gid != database.st_gid:
                    os.fchown(descriptor, -1, database.st_gid)
                if found.st_uid != database.st_uid:
                    os.fchown(descriptor, database.st_uid, -1)
        finally:
            os.close(descriptor)


def make_folder(database: str) -> None:
    """Make the folder of a database's nodes, for those who may write to the database."""
    folder = Path(os.path.realpath(database) + FOLDER)
    folder.mkdir(mode=0o700, exist_ok=True)
    _entrust(folder, os.stat(database))


class Nodes:
    """The nodes of one database, this one among them.

    Everything here may touch the disk and raises OSError: to be called from a thread, not from the
    loop.

    Args:
        database: The database file; its nodes lie in `<database>-nodes/`.
        node_id: This one. It is alive to itself, and to others from `join` on.
    """

    def __init__(self, database: str, node_id: str) -> None:
        self._database = database
        self._node_id = node_id
        self._own: int | None = None
        self._descriptors: set[int] = set()
        """What is open: a child that inherits a lock would hold it as long as it lives."""
        self._looked = 0.0
        self._changing = threading.Lock()
        forks.keep(self)

    @property
    def has_joined(self) -> bool:
        """Whether others see this node as alive."""
        return self._own is not None

    @cached_property
    def _folder(self) -> Path:
        """Beside the file itself, whatever links lead there."""
        return Path(os.path.realpath(self._database) + FOLDER)

    @contextmanager
    def opening(self, timeout_ms: int) -> Generator[None]:
        """Be the only process that makes the database ready.

        Raises:
            StoreUnavailable: Another one has been at it for `timeout_ms`.
        """
        make_folder(self._database)
        path = self._folder / _OPENING
        try:
            descriptor = self._open(path, os.O_CREAT)
        except PermissionError:
            # Somebody was here who is not the database's owner. Two at once are better than none.
            path.unlink()
            descriptor = self._open(path, os.O_CREAT)
        try:
            _entrust(path, os.stat(self._database))
            deadline = time.monotonic() + timeout_ms / 1000
            with forks.WAITING:
                while not _lock(descriptor):
                    if time.monotonic() > deadline:
                        raise StoreUnavailable(f"another process is preparing the database of {self._folder}")
                    time.sleep(_RETRY_SECONDS)
            yield
        finally:
            self._close(descriptor)

    def join(self) -> None:
        """Be alive to others; and tidy up after those that died. Idempotent."""
        with self._changing:
            if self._own is not None:
                return
            self._own = self._locked()
        with suppress(OSError):
            self.dead([other.name for other in self._folder.iterdir()])

    def look(self) -> None:
        """See, now and then, that nobody has removed the file of this node; make it again."""
        if not self.has_joined or time.monotonic() < self._looked + _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        with self._changing:
            if self._own is not None and not os.fstat(self._own).st_nlink:
                removed, self._own = self._own, None
                self._close(removed)
                self._own = self._locked()

    def leave(self) -> None:
        """Be a node no longer. Idempotent."""
        with self._changing:
            if self._own is None:
                return
            descriptor, self._own = self._own, None
        path = self._folder / self._node_id
        if _CAN_REMOVE_OPEN_FILES:  # before it is unlocked: nobody else need look at it
            with suppress(OSError):
                path.unlink()
            self._close(descriptor)
        else:
            self._close(descriptor)
            with suppress(OSError):
                path.unlink()

    def dead(self, node_ids: Iterable[str], *, tidy: bool = True) -> list[str]:
        """Which of those nodes' processes do not hold their lock.

        Args:
            node_ids: Those.
            tidy: Whether to remove the files of the dead.
        """
        self.look()
        return [node_id for node_id in node_ids if not self._is_alive(node_id, tidy=tidy)]

    def leave_to_parent(self) -> None:
        """See `forks.Inheritable`."""
        self._own = None
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def _locked(self) -> int:
        """The file of this node, made and locked."""
        make_folder(self._database)
        path = self._folder / self._node_id
        for _ in range(_JOIN_TRIES):
            with suppress(FileExistsError):
                descriptor = self._open(path, os.O_CREAT | os.O_EXCL)
                try:
                    # Another process that tidies up may have come in between, and found it without a lock.
                    if _lock(descriptor) and os.fstat(descriptor).st_nlink:
                        _entrust(path, os.stat(self._database))
                        return descriptor
                except BaseException:
                    self._close(descriptor)
                    raise
                self._close(descriptor)
            time.sleep(_RETRY_SECONDS)
        raise StoreUnavailable(f"{path} cannot be locked")

    def _is_alive(self, node_id: str, *, tidy: bool) -> bool:
        if node_id == self._node_id:
            return True
        if not _NAME.fullmatch(node_id):
            return False  # no node's name: somebody wrote an owner by hand
        path = self._folder / node_id
        try:
            descriptor = self._open(path) if tidy else self._open(path, access=os.O_RDONLY)
        except FileNotFoundError:
            return False
        except PermissionError:
            return True  # who made it may write to the database and hide from us: nobody can tell
        try:
            if not _lock(descriptor, shared=True):
                return True
            if tidy and _CAN_REMOVE_OPEN_FILES:
                with suppress(OSError):
                    path.unlink()
        finally:
            self._close(descriptor)
        if tidy and not _CAN_REMOVE_OPEN_FILES:
            with suppress(OSError):
                path.unlink()
        return False

    def _open(self, path: Path, flags: int = 0, *, access: int = os.O_RDWR) -> int:
        descriptor = os.open(path, access | _NO_LINK | flags, 0o600)
        self._descriptors.add(descriptor)
        return descriptor

    def _close(self, descriptor: int) -> None:
        self._descriptors.discard(descriptor)
        os.close(descriptor)
