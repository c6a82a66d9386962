"""Which store a command works on."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from asm_runtime.errors import StoreUnavailable
from asm_runtime.stores import SQLSessionStore

__all__ = ["checked_url", "is_sqlite", "make_folder", "opened", "reading", "store_url"]


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
async def opened(
    where: str | None, *, create: bool, migrate: bool = False
) -> AsyncGenerator[SQLSessionStore]:
    """The store that an option names, started.

    Args:
        where: See `store_url`.
        create: Make the SQLite file, or bring its schema up to date, if need be.
        migrate: Bring the schema up to date on a server too: else nobody's tables are changed there.

    Raises:
        ValidationError: The option names no store.
        StoreUnavailable: The SQLite file is not there, or cannot be made.
    """
    url = checked_url(where, create=create)
    async with SQLSessionStore(url, migrate=create if is_sqlite(url) else migrate) as store:
        yield store


@asynccontextmanager
async def reading(where: str | None) -> AsyncGenerator[SQLSessionStore]:
    """The store that an option names, started for a command that writes nothing and makes no file.

    Args:
        where: See `store_url`.

    Raises:
        ValidationError: The option names no store.
        StoreUnavailable: The SQLite file is not there.
        MigrationRequired: It has another schema.
    """
    url = checked_url(where, create=False)
    async with SQLSessionStore(url, read_only=_file(url) is not None) as store:
        yield store


def checked_url(where: str | None, *, create: bool) -> str:
    """The URL of a store that there is or, with `create`, that can be made.

    Raises:
        ValidationError: The option names no store.
        StoreUnavailable: The SQLite file is not there, or cannot be made.
    """
    url = store_url(where)
    SQLSessionStore(url)  # refuses what names no store, without showing its password
    file = _file(url)
    if file is not None:
        if create and file == _own_file():
            _make_private(file)
        elif create:
            make_folder(file.parent)
        elif not file.exists():
            raise StoreUnavailable(f"there is no store at {_shown(file)}; `asm-runtime run` makes one")
    return url


def _file(url: str) -> Path | None:
    """The file of a store; None: it is in memory, or on a server."""
    if not is_sqlite(url):
        return None
    file = Path(url.partition(":///")[2])
    return file if file.name and file.name != ":memory:" else None


def is_sqlite(url: str) -> bool:
    """Whether a store's URL means a SQLite database."""
    return url.startswith("sqlite")


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Make a folder, and those above it, unless it is there.

    Raises:
        StoreUnavailable: It cannot be made.
    """
    try:
        folder.mkdir(mode, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(f"cannot make the folder {_shown(folder)}: {error.strerror}") from error


def _make_private(file: Path) -> None:
    """Make the user's own store before SQLite does, open to nobody else: it holds what agents said.

    What SQLite and the locks put beside it later takes its mode.
    """
    make_folder(file.parent.parent)
    make_folder(file.parent, mode=0o700)
    try:
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
        with suppress(PermissionError):  # of another owner, who knows best
            file.parent.chmod(0o700)
            file.chmod(0o600)
    except OSError as error:
        raise StoreUnavailable(f"cannot open {file}: {error.strerror}") from error


def _shown(path: Path) -> str:
    """A path without what may be a password in it, if it is a URL that lacks its scheme."""
    return re.sub(r"(?<=:)[^:/@]+(?=@)", "***", str(path))


def _own_file() -> Path:
    """Where a user's state belongs. Source: XDG Base Directory Specification, `XDG_STATE_HOME`."""
    if sys.platform == "win32":
        state = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "asm-runtime" / "asm.db"
