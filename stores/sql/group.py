"""Many requests, one transaction.

Everything that waits is run in one transaction, in the order in which it came: one commit, one
fsync, for hundreds of requests. Should the database refuse, they are run again each in a transaction
of its own, so that only the one it refuses fails.

What is tried next is decided here; a database runs it, in a thread or with round trips.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Protocol, TypeAlias

import msgspec

from asm_runtime.errors import AsmError, StoreError
from asm_runtime.stores.sql import operations
from asm_runtime.stores.sql.outcome import Request
from asm_runtime.stores.sql.rows import EventRow
from asm_runtime.stores.sql.transaction import Transaction

__all__ = ["Attempt", "Attempts", "ErrorTable", "attempts", "lone_event", "results"]


class ErrorTable(Protocol):
    """What the errors of a database's driver mean."""

    name: str
    """What names the database in errors."""

    def translated(self, error: Exception) -> AsmError | None:
        """What our callers get for it; None: it is no error of the driver's."""
        ...

    def is_duplicate(self, error: Exception) -> bool:
        """Whether a unique key was there already: most likely an event that is stored."""
        ...

    def is_busy(self, error: Exception) -> bool:
        """Whether nothing was begun, after such a wait that each request alone would wait as long again."""
        ...


class Attempt(msgspec.Struct, gc=False):
    """What is to be run in one transaction."""

    requests: Sequence[Request]
    careful: bool
    """Whether to look which of the events are stored already."""


Attempts: TypeAlias = "Generator[Attempt, list[Any] | Exception, list[Any]]"


def attempts(requests: Sequence[Request], errors: ErrorTable) -> Attempts:
    """Try requests in one transaction, or, where that fails, each in its own.

    Yields what to try next; is sent the results, or what ended the transaction. Returns a result for each
    request, in order: what it returned, or its error.
    """
    if not requests:
        return []
    tried = yield Attempt(requests, careful=False)
    if isinstance(tried, Exception) and errors.is_duplicate(tried):
        tried = yield Attempt(requests, careful=True)
    if not isinstance(tried, Exception):
        return tried
    done: list[Any] = []
    while len(done) < len(requests):
        if isinstance(tried, Exception) and errors.is_busy(tried):
            done += [_meaning(tried, errors) for _ in requests[len(done) :]]
            break
        tried = yield Attempt([requests[len(done)]], careful=True)
        done += [_meaning(tried, errors)] if isinstance(tried, Exception) else tried
    return done


def _meaning(error: Exception, errors: ErrorTable) -> AsmError:
    if isinstance(error, AsmError):
        return error
    meaning = errors.translated(error)
    if meaning is None:
        meaning = StoreError(f"{errors.name}: the request failed: {error!r}")
        meaning.__cause__ = error
    return meaning


def lone_event(attempt: Attempt) -> EventRow | None:
    """The event, if to append it is all that is asked for."""
    requests = attempt.requests
    if len(requests) == 1 and not attempt.careful and requests[0][0] is operations.append:
        rows: Sequence[EventRow]
        rows, fence = requests[0][1]
        if fence is None and len(rows) == 1:
            return rows[0]
    return None


def results(transaction: Transaction, requests: Sequence[Request]) -> list[Any]:
    """Run requests in order; a refusal is a result. Neighbouring appends become one."""
    results: list[Any] = []
    appends: list[Any] = []
    for operation, arguments in requests:
        if operation is operations.append:
            appends.append(arguments)
            continue
        if appends:
            results += operations.append_all(transaction, appends)
            appends = []
        try:
            results.append(operation(transaction, *arguments))
        except AsmError as refusal:
            results.append(refusal)
    if appends:
        results += operations.append_all(transaction, appends)
    return results
