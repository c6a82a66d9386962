"""The files of a SQLite database, and whether they are still those that were opened.

A connection goes on with the files that it has opened, whatever stands in their place by now. What is
committed to a file that was deleted is gone with it; and a write-ahead log beside another database than
its own is replayed into that. So it is seen to, before anything is acknowledged, that the database, its
log and the log's index are in their places.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from contextlib import suppress
from functools import lru_cache

from asm_runtime.errors import StoreError, StoreUnavailable
from asm_runtime.stores.sql.sqlite.nodes import FOLDER, make_folder

__all__ = ["DatabaseFiles"]

_PARTS = {"": "database file", "-wal": "write-ahead log", "-shm": "index of the write-ahead log"}

SETTLED_NANOSECONDS = 2_500_000_000
"""How old the last change of a folder must be for an unchanged time to prove that nothing has changed: the
coarsest file systems tell times in steps of two seconds."""


class DatabaseFiles:
    """What lies at a database's path, as it was when it was opened.

    Everything here touches the disk: to be called from a thread, not from the loop.

    Args:
        path: The database file.
        name: What names it in errors.
    """

    def __init__(self, path: str, name: str) -> None:
        self._path = path
        self._folder = ""
        self._name = name
        self._before: int | None = None
        self._opened: dict[str, tuple[int, int]] = {}
        self._lost: str | None = None
        self._seen: tuple[int, int, int] | None = None
        """The folder at the last full check, if it has settled by then."""
        self._checked = 0.0

    @property
    def path(self) -> str:
        """The file itself, once it was connected to: whatever links lead there, wherever the process goes."""
        return self._path

    def before_connecting(self) -> None:
        """See that the file can be opened without harm to what is in it, or is still the one that was.

        Raises:
            StoreUnavailable: There is no such folder.
            StoreError: The file has a second name, is mounted without its folder, or lies beside the log
                of another.
        """
        if self._opened:
            self.check()
            return
        self._path = os.path.realpath(self._path)
        self._folder = os.path.dirname(self._path)
        if not os.path.isdir(self._folder):
            raise StoreUnavailable(f"{self._name}: there is no directory {self._folder}")
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return
        if not stat.S_ISREG(found.st_mode):
            return  # SQLite says it
        self._before = found.st_ino
        # A log lies beside the name by which the file was opened: two names, two logs.
        if found.st_nlink > 1:
            raise StoreError(
                f"{self._name} has {found.st_nlink} names (hard links), and each would have a log of its "
                "own: remove the others"
            )
        if _is_mounted_alone(self._path, self._folder, found.st_dev, found.st_ino):
            raise StoreError(
                f"{self._name} is mounted without its folder, so its log would lie in another place for each "
                f"who mounts it: mount {self._folder}"
            )
        log = self._numbers_of_log()
        if log is not None and log[0] != found.st_ino and log[1] == _number(f"{self._path}-wal"):
            raise StoreError(
                f"{self._name} was replaced, and beside it lies the log of the file that was there before, "
                f"which would be written into it. If it was restored on purpose, move {self._path}-wal and "
                f"{self._path}-shm away; if it is the same database after all, remove {self._record}"
            )

    def opened(self, *, with_log: bool = True) -> None:
        """Remember the files as they are now that a connection is open.

        Args:
            with_log: Whether the connection stays open, and the log with it.

        Raises:
            StoreUnavailable: The file was replaced meanwhile.
        """
        found = {part: os.stat(self._path + part) for part in (_PARTS if with_log else [""])}
        if self._before not in (None, found[""].st_ino):
            raise StoreUnavailable(f"{self._name} was replaced while it was being opened")
        self._opened = {part: (one.st_dev, one.st_ino) for part, one in found.items()}
        if not with_log:
            return
        numbers = found[""].st_ino, found["-wal"].st_ino
        if self._numbers_of_log() != numbers:
            with suppress(OSError):  # the owner of the database may have kept the folder to himself
                self._record_log(numbers)

    def check(self, max_age_seconds: float = 0.0) -> None:
        """See that the files are still in their places. Costs one question to the system.

        Args:
            max_age_seconds: How old the last answer may be.

        Raises:
            StoreError: One was deleted or replaced; it stays so for this store.
            StoreUnavailable: The system does not tell.
        """
        if self._lost is None:
            now = time.monotonic()
            if now - self._checked <= max_age_seconds or not self._opened:
                return
            try:
                self._look()
            except OSError as error:
                raise StoreUnavailable(f"{self._name}: {error}") from error
            self._checked = now
        if self._lost is not None:
            raise StoreError(
                f"{self._name}: its {self._lost} while it was open. Nothing is written to it any more: stop "
                "the store, see what is there, and start it again",
                details={"database": self._name},
            )

    def is_fresh(self, seconds: float) -> bool:
        """Whether the last check is no older, and all was in its place."""
        return self._lost is None and time.monotonic() - self._checked <= seconds

    def may_be_closed(self) -> bool:
        """Whether nothing of another database stands in their places, which the last close would delete."""
        return all(_number(self._path + part) in (None, number) for part, (_, number) in self._opened.items())

    def _look(self) -> None:
        folder = os.stat(self._folder)
        seen = folder.st_dev, folder.st_ino, folder.st_mtime_ns
        if seen == self._seen:
            return
        for part, identity in self._opened.items():
            try:
                found = os.stat(self._path + part)
            except FileNotFoundError:
                self._lost = f"{_PARTS[part]} was deleted"
                return
            if (found.st_dev, found.st_ino) != identity:
                self._lost = f"{_PARTS[part]} was replaced"
                return
        if time.time_ns() - folder.st_mtime_ns > SETTLED_NANOSECONDS:
            self._seen = seen

    @property
    def _record(self) -> str:
        """Whose the log is: a link that leads nowhere, as it is read and replaced in one step each."""
        return f"{self._path}{FOLDER}/log"

    def _numbers_of_log(self) -> tuple[int, int] | None:
        try:
            database, _, log = os.readlink(self._record).partition(":")
            return int(database), int(log)
        except (OSError, ValueError):
            return None

    def _record_log(self, numbers: tuple[int, int]) -> None:
        fresh, target = f"{self._record}-{os.getpid()}", "{}:{}".format(*numbers)
        try:
            os.symlink(target, fresh)
        except FileNotFoundError:
            make_folder(self._path)
            os.symlink(target, fresh)
        except FileExistsError:  # of a process that was killed
            os.unlink(fresh)
            os.symlink(target, fresh)
        os.replace(fresh, self._record)


def _number(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


@lru_cache(maxsize=256)  # a tenth of what it takes to open a file
def _is_mounted_alone(path: str, folder: str, device: int, number: int) -> bool:
    """Whether a file is a mount of its own; False where the system does not tell."""
    if sys.platform != "linux":
        return False
    mounts = [_mount_of(path), _mount_of(folder)]
    return None not in mounts and mounts[0] != mounts[1]


def _mount_of(path: str) -> str | None:
    # Of a descriptor that cannot read: to close another one of the file would drop SQLite's locks on it.
    descriptor = os.open(path, os.O_PATH)
    try:
        with open(f"/proc/self/fdinfo/{descriptor}") as info:
            for line in info:
                if line.startswith("mnt_id:"):
                    return line
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return None
