"""Which store a command works on."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from asm_runtime.errors import StoreUnavailable
from asm_runtime.stores import SQLSessionStore

__all__ = ["check_file", "make_folder", "opened", "store_url"]


def store_url(option: str | None) -> str:
    """The store's URL: the option's, else that of `$ASM_STORE`, else the user's own SQLite file.

    Args:
        option: A URL, or the path of a SQLite file.
    """
    named = option or os.environ.get("ASM_STORE")
    if not named:
        return f"sqlite:///{_own_file()}"
    return named if "://" in named else f"sqlite:///{named}"


@asynccontextmanager
async def opened(where: str | None, *, create: bool) -> AsyncGenerator[SQLSessionStore]:
    """The store that an option names, started.

    Args:
        where: See `store_url`.
        create: Make the SQLite file, or bring its schema up to date, if need be. A command that
            only reads does neither: an older schema is a `MigrationRequired`.

    Raises:
        ValidationError: The option names no store.
        StoreUnavailable: The SQLite file is not there.
    """
    url = store_url(where)
    check_file(url, create=create)
    async with SQLSessionStore(url, migrate=create) as store:
        yield store


def check_file(url: str, *, create: bool) -> None:
    """See that a SQLite file is there, or can be made. Other databases are left to themselves.

    Raises:
        StoreUnavailable: It is not, or cannot.
    """
    file = _sqlite_file(url)
    if file is None:
        return
    if not create:
        if not file.exists():
            raise StoreUnavailable(f"there is no store at {file}; `asm-runtime run` makes one")
        return
    make_folder(file.parent)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, unless it is there.

    Raises:
        StoreUnavailable: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(f"cannot make the folder {folder}: {error.strerror}") from error


def _sqlite_file(url: str) -> Path | None:
    scheme, _, path = url.partition(":///")
    return Path(path) if scheme.startswith("sqlite") and path not in ("", ":memory:") else None


def _own_file() -> Path:
    """Where a user's state belongs. Source: XDG Base Directory Specification, `XDG_STATE_HOME`."""
    if sys.platform == "win32":
        state = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "asm-runtime" / "asm.db"
