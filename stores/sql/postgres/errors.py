"""What an error of PostgreSQL or of its driver becomes, by one table."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import asyncpg

from asm_runtime.errors import StoreError, StoreUnavailable

__all__ = ["MEANINGS", "ErrorTable", "Meaning", "is_lost", "is_repeatable", "translated", "translating"]

Meaning = tuple[type[StoreError], str]

MEANINGS: dict[str, Meaning] = {
    # Wait, or make room, and the same call may succeed.
    "08": (StoreUnavailable, "the connection is lost"),
    "25006": (StoreUnavailable, "the server is a standby, or read-only"),
    "25P03": (StoreUnavailable, "the server ended a transaction that was idle"),
    "25P04": (StoreUnavailable, "the server ended a transaction that took too long"),
    "40": (StoreUnavailable, "the transaction was rolled back for another one"),
    "53": (StoreUnavailable, "the server has not enough room, memory or connections"),
    "55": (StoreUnavailable, "another session holds what the statement needs"),
    "57": (StoreUnavailable, "the server cancelled the statement, or stops or starts"),
    "58": (StoreUnavailable, "the server's system failed"),
    "72": (StoreUnavailable, "the statement took so long that what it reads is gone"),
    # It will fail again.
    "22": (StoreError, "the database cannot hold a value"),
    "23": (StoreError, "a constraint of the schema refused it"),
    "28": (StoreError, "the credentials are refused"),
    "3D": (StoreError, "there is no such database"),
    "3F": (StoreError, "there is no such schema"),
    "42": (StoreError, "the database refused the statement"),
    "54": (StoreError, "it exceeds a limit of the server"),
    "57P04": (StoreError, "the database was dropped"),
    "XX001": (StoreError, "the data is damaged"),
    "XX002": (StoreError, "an index is damaged"),
}
"""By SQLSTATE, or its class: the longest that fits.

Source: postgresql.org/docs/current/errcodes-appendix.html.
"""

_UNKNOWN: Meaning = (StoreError, "the database failed")

CLIENT_ERRORS = (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, EOFError)
"""What the driver raises by itself: it has lost its connection, or does not understand what comes from it.
A TimeoutError is an OSError."""


def is_lost(error: BaseException) -> bool:
    """Whether the connection cannot be used any more."""
    if isinstance(error, asyncpg.PostgresError):
        code: str = error.sqlstate or ""
        return code[:2] == "08" or code in ("57P01", "57P02", "57P03", "57P05", "25P03", "25P04")
    return isinstance(error, CLIENT_ERRORS)


def is_repeatable(error: BaseException) -> bool:
    """Whether it failed only for the sake of another one: a deadlock, an artifact that was there first."""
    if isinstance(error, asyncpg.UniqueViolationError):
        return bool(error.table_name == "asm_artifacts")
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate in ("40001", "40P01")


def translated(error: Exception, database: str) -> StoreError | None:
    """Our error for one of the driver's, which is chained as its cause; None: it is none of the driver's."""
    code: str | None = None
    if isinstance(error, asyncpg.PostgresError):
        code = error.sqlstate or ""
        kind, meaning = MEANINGS.get(code) or MEANINGS.get(code[:2]) or _UNKNOWN
    elif isinstance(error, TimeoutError):
        kind, meaning = StoreUnavailable, "the database did not answer in time"
    elif isinstance(error, CLIENT_ERRORS):
        kind, meaning = StoreUnavailable, "the database cannot be reached, or the connection is lost"
    else:
        return None
    made = kind(f"{database}: {meaning} ({error})", details={"database": database, "sqlstate": code})
    made.__cause__ = error
    return made


@contextmanager
def translating(database: str) -> Generator[None]:
    """Have errors of the driver become ours.

    Raises:
        StoreError: What the driver's error means.
    """
    try:
        yield
    except Exception as error:
        made = translated(error, database)
        if made is None:
            raise
        raise made from error


class ErrorTable:
    """See `stores.sql.group.ErrorTable`.

    Args:
        name: What names the database in messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def translated(self, error: Exception) -> StoreError | None:
        """See the protocol."""
        return translated(error, self.name)

    def is_duplicate(self, error: Exception) -> bool:
        """See the protocol."""
        return isinstance(error, asyncpg.UniqueViolationError)

    def is_busy(self, error: Exception) -> bool:
        """See the protocol. Where the server is gone, it is gone for each of them."""
        return is_lost(error) or isinstance(error, StoreUnavailable)
