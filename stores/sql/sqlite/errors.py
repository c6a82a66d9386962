"""What an error of SQLite becomes, by one table."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager

from asm_runtime.errors import StoreError, StoreUnavailable

__all__ = ["MEANINGS", "ErrorTable", "Meaning", "translated", "translating"]

Meaning = tuple[type[StoreError], str]

MEANINGS: dict[str, Meaning] = {
    # Wait, or make room, and the same call may succeed.
    "SQLITE_BUSY": (StoreUnavailable, "another connection held the database for too long"),
    "SQLITE_LOCKED": (StoreUnavailable, "another statement holds the table"),
    "SQLITE_FULL": (StoreUnavailable, "the disk or the database's page limit is full"),
    "SQLITE_IOERR": (StoreUnavailable, "the disk did not read or write"),
    "SQLITE_CANTOPEN": (StoreUnavailable, "the database file cannot be opened"),
    "SQLITE_READONLY": (StoreUnavailable, "the database cannot be written to"),
    "SQLITE_PERM": (StoreUnavailable, "the file permissions forbid it"),
    "SQLITE_PROTOCOL": (StoreUnavailable, "the lock of the write-ahead log could not be had"),
    "SQLITE_NOMEM": (StoreUnavailable, "the memory is full"),
    "SQLITE_INTERRUPT": (StoreUnavailable, "the statement was interrupted"),
    "SQLITE_ABORT": (StoreUnavailable, "the statement was aborted"),
    # It will fail again.
    "SQLITE_CORRUPT": (StoreError, "the database file is damaged"),
    "SQLITE_NOTADB": (StoreError, "the file is no SQLite database"),
    "SQLITE_TOOBIG": (StoreError, "a value or a row is larger than SQLite can store"),
    "SQLITE_CONSTRAINT": (StoreError, "a constraint of the schema refused it"),
    "SQLITE_MISMATCH": (StoreError, "a value has the wrong type for its column"),
    "SQLITE_ERROR": (StoreError, "the database refused the statement"),
    "SQLITE_SCHEMA": (StoreError, "the schema changed under the statement"),
    "SQLITE_AUTH": (StoreError, "the statement is not authorised"),
    "SQLITE_INTERNAL": (StoreError, "SQLite failed internally"),
    "SQLITE_MISUSE": (StoreError, "SQLite was used in a way it does not allow"),
    "SQLITE_NOLFS": (StoreError, "the file system cannot hold so large a file"),
    "SQLITE_RANGE": (StoreError, "a parameter of the statement does not exist"),
    "SQLITE_FORMAT": (StoreError, "the database file has another format"),
    "SQLITE_NOTFOUND": (StoreError, "SQLite does not know that operation"),
    "SQLITE_EMPTY": (StoreError, "the database is empty"),
}
"""By the name of the primary result code; an extended code belongs to its primary one.

Source: sqlite.org/rescode.html. The codes that no statement ends with (OK, ROW, DONE, NOTICE,
WARNING) are left out.
"""

_BY_CODE = {getattr(sqlite3, name): meaning for name, meaning in MEANINGS.items()}
_UNKNOWN: Meaning = (StoreError, "the driver failed")
_PRIMARY = 0xFF


def translated(error: sqlite3.Error, database: str) -> StoreError:
    """Our error for one of the driver's; the driver's is chained as its cause.

    Args:
        error: What the driver raised.
        database: What names the database in the message.
    """
    code: int | None = getattr(error, "sqlite_errorcode", None)  # only errors of the database have one
    kind, meaning = _UNKNOWN if code is None else _BY_CODE.get(code & _PRIMARY, _UNKNOWN)
    made = kind(
        f"{database}: {meaning} ({error})",
        details={"database": database, "sqlite_code": getattr(error, "sqlite_errorname", None)},
    )
    made.__cause__ = error
    return made


@contextmanager
def translating(database: str) -> Generator[None]:
    """Have errors of the driver and of the operating system become ours.

    Raises:
        StoreUnavailable: The operating system refused: no room, no permission, too many open files.
        StoreError: What the driver's error means.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise translated(error, database) from error
    except OSError as error:
        raise StoreUnavailable(f"{database}: {error}", details={"database": database}) from error


class ErrorTable:
    """See `stores.sql.group.ErrorTable`.

    Args:
        name: What names the database in messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def translated(self, error: Exception) -> StoreError | None:
        """See the protocol."""
        return translated(error, self.name) if isinstance(error, sqlite3.Error) else None

    def is_duplicate(self, error: Exception) -> bool:
        """See the protocol."""
        return _primary(error) == sqlite3.SQLITE_CONSTRAINT

    def is_busy(self, error: Exception) -> bool:
        """See the protocol."""
        return _primary(error) == sqlite3.SQLITE_BUSY


def _primary(error: Exception) -> int:
    code: int = getattr(error, "sqlite_errorcode", None) or 0
    return code & _PRIMARY
