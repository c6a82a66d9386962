"""What an error of the file system becomes, by one table."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager

from asm_runtime.errors import StoreError, StoreUnavailable

__all__ = ["FOR_NOW", "translated", "translating"]

FOR_NOW = frozenset(
    getattr(errno, name)
    for name in (
        "ENOSPC", "EDQUOT", "EFBIG",  # no room
        "EACCES", "EPERM", "EROFS",  # not allowed
        "EIO", "ENXIO", "ENODEV", "ENOMEM", "ENOBUFS",  # the disk, the memory
        "EMFILE", "ENFILE", "EAGAIN", "EBUSY", "EDEADLK", "ENOLCK", "EINTR", "ETXTBSY",  # too much at once
        "ESTALE", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ECONNRESET",
        "ECONNREFUSED", "ENOTCONN", "EREMOTEIO", "ESHUTDOWN",  # a file system across a network
    )
    if hasattr(errno, name)
)  # fmt: skip
"""The same call may succeed later. What is not named here fails again: a folder in the way, a root that is
a file, a name that is too long."""


def translated(error: OSError, place: str) -> StoreError:
    """Our error for one of the operating system's; that is chained as its cause.

    Args:
        error: What the system raised.
        place: The folder that the store was given.
    """
    kind = StoreUnavailable if error.errno in FOR_NOW else StoreError
    name = errno.errorcode.get(error.errno or 0)
    made = kind(
        f"artifacts in {place}: {os.strerror(error.errno) if error.errno else error}",
        details={"root": place, "errno": name},
    )
    made.__cause__ = error
    return made


@contextmanager
def translating(place: str) -> Generator[None]:
    """Have errors of the operating system become ours.

    Raises:
        StoreUnavailable: No room, no permission, too many open files, a disk that does not answer.
        StoreError: What will fail again.
    """
    try:
        yield
    except OSError as error:
        raise translated(error, place) from error
