"""A folder of blobs: what is done on the disk, to be called from threads.

    ROOT/3f/b-notes+today.md    the blob `notes/today.md`, in one of 256 folders by hash
    ROOT/tmp/put-…              what is being put; locked while its writer lives

A blob's name says its key, so that a list opens no file. It is replaced by renaming a file that is
written and synced; a folder's own sync makes the renaming last.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from itertools import islice

from asm_runtime.errors import ArtifactNotFound, StoreError
from asm_runtime.ports import BlobInfo
from asm_runtime.stores.artifacts import keys

__all__ = ["Folder", "Listing", "OpenBlob", "Upload"]

_TEMPORARY = "tmp"
_NAME = re.compile(r"put-[0-9a-f]{32}")
_SHARDS = [f"{number:02x}" for number in range(256)]

TIDY_EVERY_SECONDS = 600.0
"""How often a process that puts looks for what killed ones have left."""

ABANDONED_SECONDS = 86_400.0
"""How old a temporary file is that nobody writes any more, where there are no locks that tell."""

_TRIES = 100
"""How often a put starts again because other processes removed a folder under it."""

_OPEN = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)

if sys.platform == "win32":

    def _lock(descriptor: int) -> bool | None:
        return None  # an open file cannot be removed

    def _sync(descriptor: int) -> None:
        os.fsync(descriptor)

    def _sync_folder(path: str) -> None:
        """A folder cannot be synced."""

else:
    import fcntl

    def _lock(descriptor: int) -> bool | None:
        """Lock an open file; whether nobody else has it locked. None: the file system has no locks."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return None
        return True

    def _sync(descriptor: int) -> None:
        if sys.platform == "darwin":  # a plain fsync leaves the data in the drive's cache
            with suppress(OSError):
                fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
                return
        os.fsync(descriptor)

    def _sync_folder(path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _sync(descriptor)
        finally:
            os.close(descriptor)


class Folder:
    """The blobs under one root.

    Args:
        root: Where; made, for its owner alone, by the first put.
    """

    def __init__(self, root: str) -> None:
        self.given = root
        """As it was named."""
        self._lasting: set[str] = set()
        """Those of the 256 folders that will be there after a power cut."""
        self._tidied: float | None = None
        self.renew_lock()
        _folders.add(self)

    def renew_lock(self) -> None:
        """Make a new lock: in a forked child nobody would ever open one that was held."""
        self.changing = threading.Lock()
        """Held while a blob is replaced or removed, unless its caller has given up."""

    @cached_property
    def root(self) -> str:
        """The folder, wherever the process goes from here."""
        return os.path.abspath(self.given)

    # -- putting

    def begin(self) -> Upload:
        """A file for a new version of some blob."""
        self._tidy()
        folder = os.path.join(self.root, _TEMPORARY)
        for _ in range(_TRIES):
            self._make(folder)
            path = os.path.join(folder, f"put-{secrets.token_hex(16)}")
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN, 0o600)
            except FileNotFoundError:  # removed under us
                continue
            # Another process that tidies up may have come in between, and found it without a lock.
            if _lock(descriptor) is not False and os.fstat(descriptor).st_nlink:
                return Upload(self, path, descriptor)
            os.close(descriptor)
        raise StoreError(f"artifacts in {self.root}: no file stays in {folder}")

    def move(self, source: str, key: str, is_wanted: Callable[[], bool]) -> None:
        """Put a file in a blob's place, if it still is wanted in the moment when that happens."""
        target = self._path(key)
        folder = os.path.dirname(target)
        for attempt in range(1, _TRIES + 1):
            with self.changing:
                if not is_wanted():
                    return
                self._make(folder)
                try:
                    os.replace(source, target)
                    break
                except FileNotFoundError:
                    if attempt == _TRIES:
                        raise
                    # Another process has removed the folder, which was empty.
        with suppress(FileNotFoundError):  # deleted again meanwhile
            self._sync(folder)

    def _make(self, folder: str) -> None:
        """See that there is a folder."""
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            return
        except FileNotFoundError:
            parent = os.path.dirname(folder)
            if parent == folder:
                raise
            self._make(parent)
            with suppress(FileExistsError):
                os.mkdir(folder, 0o700)
        if len(folder) <= len(self.root):
            self._lasting.clear()
            _sync_folder(os.path.dirname(folder))

    def _sync(self, folder: str) -> None:
        """Let what was renamed into a folder last, and the way there from the root.

        Not only what this process has made: whoever made it may not have come to this yet.
        """
        _sync_folder(folder)
        while folder != self.root and folder not in self._lasting:
            parent: str = os.path.dirname(folder)
            _sync_folder(parent)
            if parent == self.root:
                self._lasting.add(folder)
            folder = parent

    def _tidy(self) -> None:
        """Remove, now and then, what was being put by processes that were killed."""
        now = time.monotonic()
        if self._tidied is not None and now < self._tidied + TIDY_EVERY_SECONDS:
            return
        self._tidied = now
        folder = os.path.join(self.root, _TEMPORARY)
        with suppress(OSError), os.scandir(folder) as found:
            for entry in found:
                if _NAME.fullmatch(entry.name):
                    with suppress(OSError):
                        _remove_abandoned(os.path.join(folder, entry.name))

    # -- reading

    def open(self, key: str) -> OpenBlob:
        """A blob, to be read.

        Raises:
            ArtifactNotFound: There is none.
        """
        path = self._path(key)
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _OPEN)
        except FileNotFoundError:
            raise ArtifactNotFound(f"no artifact {key}", details={"key": key}) from None
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise StoreError(f"artifacts in {self.root}: where the blob {key!r} would be there is no file")
        return OpenBlob(descriptor, found.st_size, key)

    def read(self, key: str) -> bytes:
        """A whole blob."""
        blob = self.open(key)
        try:
            data = blob.read(blob.byte_size)
            blob.read(1)  # that there is no more
            return data
        finally:
            blob.close()

    def exists(self, key: str) -> bool:
        """Whether there is a blob."""
        try:
            return stat.S_ISREG(os.lstat(self._path(key)).st_mode)
        except FileNotFoundError:
            return False

    def remove(self, key: str, is_wanted: Callable[[], bool]) -> None:
        """Remove a blob, if that still is wanted in the moment when it happens."""
        path = self._path(key)
        folder = os.path.dirname(path)
        with self.changing:
            if not is_wanted():
                return
            try:
                os.unlink(path)
            except FileNotFoundError:
                return
            # Folders of long names go with their last blob.
            with suppress(OSError):
                while keys.is_folder(os.path.basename(folder)):
                    os.rmdir(folder)
                    folder = os.path.dirname(folder)
        with suppress(FileNotFoundError):
            _sync_folder(folder)

    def list(self, prefix: str) -> Listing:
        """The blobs whose keys begin so."""
        return Listing(self._entries(), prefix)

    def _entries(self) -> Generator[tuple[tuple[str, ...], os.DirEntry[str]]]:
        """All that lies where blobs do, each with its path from the root."""
        try:
            with os.scandir(self.root):
                pass  # an error of the root is one; those of what is in it are somebody else's
        except FileNotFoundError:
            return
        for shard in _SHARDS:
            if not os.path.islink(os.path.join(self.root, shard)):
                yield from self._entries_in((shard,))

    def _entries_in(self, path: tuple[str, ...]) -> Generator[tuple[tuple[str, ...], os.DirEntry[str]]]:
        try:
            entries = os.scandir(os.path.join(self.root, *path))
        except (FileNotFoundError, NotADirectoryError):
            return
        with entries:
            for entry in entries:
                if keys.is_folder(entry.name) and entry.is_dir(follow_symlinks=False):
                    yield from self._entries_in((*path, entry.name))
                else:
                    yield (*path, entry.name), entry

    def _path(self, key: str) -> str:
        shard, *rest = keys.file_path(key)
        folder = os.path.join(self.root, shard)
        if os.path.islink(folder):
            raise StoreError(f"artifacts in {self.root}: {shard} is a link: what it names may lie elsewhere")
        return os.path.join(folder, *rest)


class Upload:
    """A new version of a blob, in a file that nobody reads."""

    def __init__(self, folder: Folder, path: str, descriptor: int) -> None:
        self._folder = folder
        self._path = path
        self._descriptor: int | None = descriptor
        self._turn = threading.Lock()
        self._sum = sha256()
        self.byte_size = 0
        self.is_wanted = True
        """Set to false by a caller that gives up: then nothing is replaced any more."""

    @property
    def checksum(self) -> str:
        """SHA-256 of what was written, in hex."""
        return self._sum.hexdigest()

    def write(self, block: memoryview) -> None:
        """Write what follows."""
        with self._turn:
            if self._descriptor is None:
                return
            self._sum.update(block)
            self.byte_size += len(block)
            while len(block):
                block = block[os.write(self._descriptor, block) :]

    def finish(self, key: str) -> None:
        """Let it be the blob of that key; it lasts when this returns."""
        with self._turn:
            if self._descriptor is None:
                return
            _sync(self._descriptor)
            if sys.platform == "win32":  # where an open file cannot be renamed
                self._close()
            self._folder.move(self._path, key, lambda: self.is_wanted)
            if self.is_wanted:
                self._close()

    def drop(self) -> None:
        """Remove it, unless it is finished. Idempotent."""
        self.is_wanted = False
        with self._turn:
            with suppress(OSError):
                os.unlink(self._path)
            self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


class OpenBlob:
    """A blob that is being read: that version, whatever is put or deleted meanwhile."""

    def __init__(self, descriptor: int, byte_size: int, key: str) -> None:
        self._descriptor: int | None = descriptor
        self._key = key
        self._left = byte_size
        self._turn = threading.Lock()
        self.byte_size = byte_size

    def read(self, count: int) -> bytes:
        """So many bytes, fewer only at the end.

        Raises:
            StoreError: The file is longer or shorter than when it was opened.
        """
        pieces: list[bytes] = []
        with self._turn:
            if self._descriptor is None:
                return b""
            wanted = min(count, self._left)
            while wanted:
                piece = os.read(self._descriptor, wanted)
                if not piece:
                    raise self._changed()
                pieces.append(piece)
                wanted -= len(piece)
                self._left -= len(piece)
            if not self._left and os.read(self._descriptor, 1):
                raise self._changed()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Let it go, after the read that is under way. Idempotent."""
        with self._turn:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                os.close(descriptor)

    def _changed(self) -> StoreError:
        return StoreError(f"the file of artifact {self._key!r} was changed while it was read")


class Listing:
    """A list of blobs that is being read."""

    def __init__(self, entries: Generator[tuple[tuple[str, ...], os.DirEntry[str]]], prefix: str) -> None:
        self._entries = entries
        self._prefix = prefix
        self._turn = threading.Lock()

    def next(self, count: int) -> list[BlobInfo] | None:
        """The blobs among the next files; None: there are no more."""
        with self._turn:
            looked_at = list(islice(self._entries, count))
            if not looked_at:
                return None
            found = (self._blob(path, entry) for path, entry in looked_at)
            return [blob for blob in found if blob is not None]

    def close(self) -> None:
        """Let it go. Idempotent."""
        with self._turn:
            self._entries.close()

    def _blob(self, path: tuple[str, ...], entry: os.DirEntry[str]) -> BlobInfo | None:
        key = keys.key_of_path(path)
        if key is None or not key.startswith(self._prefix):
            return None
        try:
            found = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # deleted meanwhile
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        return BlobInfo(
            key=key, byte_size=found.st_size, modified_at=datetime.fromtimestamp(found.st_mtime, UTC)
        )


_folders: weakref.WeakSet[Folder] = weakref.WeakSet()


def _renew_locks() -> None:
    for folder in _folders:
        folder.renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


def _remove_abandoned(path: str) -> None:
    """Remove a temporary file whose writer is gone."""
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NONBLOCK", 0) | _OPEN)
    try:
        is_free = _lock(descriptor)
        if is_free is None:
            is_free = time.time() - os.fstat(descriptor).st_mtime > ABANDONED_SECONDS
        if is_free:
            os.unlink(path)
    finally:
        os.close(descriptor)
