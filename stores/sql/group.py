"""Many requests, one transaction.

Everything that waits is run in one transaction, in the order in which it came: one commit, one
fsync, for hundreds of requests. Should the database refuse, they are run again each in a transaction
of its own, so that only the one it refuses fails.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import msgspec

from asm_runtime.errors import AsmError, StoreError
from asm_runtime.payload import decode
from asm_runtime.stores.sql import operations
from asm_runtime.stores.sql.rows import EventRow
from asm_runtime.stores.sql.sqlite import errors, statements
from asm_runtime.stores.sql.sqlite.opening import begin
from asm_runtime.stores.sql.sqlite.transaction import Appended, Cursor, Effect, Transaction, append_alone

__all__ = ["ChangeFeed", "Outcome", "Request", "Writer"]

Request: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...]]
"""One of `operations`, and its arguments after the transaction."""

KEPT_CHANGES = 512
"""How many commits the change feed reaches back. Whoever missed more reads again whatever it waits for."""

FORGET_EVERY = 64
"""After how many commits the older ones are deleted, and what others have left is looked for."""

_NEVER = 2**63 - 1


class ChangeFeed:
    """What others have committed since it was last looked at. Belongs to whoever writes."""

    def __init__(self) -> None:
        self._seen: int | None = None
        """The last number; None: before the first look."""
        self._changed: set[str] = set()
        self._missed = False

    def look(self, cursor: Cursor, before: int | None = None) -> None:
        """Note what is past the last look, up to our own change with the number `before`."""
        if self._seen is None:
            if before is None:
                cursor.execute(statements.NEXT_CHANGE)
                before = int(cursor.fetchone()[0])
            self._seen, self._missed = before - 1, True
        if before is None:
            before = _NEVER
        elif before == self._seen + 1:
            return
        cursor.execute(statements.CHANGES, (self._seen, before))
        first, last, lists = cursor.fetchone()
        if last is not None:
            changes = decode(lists)
            self._missed = self._missed or first > self._seen + 1 or None in changes
            self._changed.update(id for ids in changes for id in ids or ())
            self._seen = last

    def committed(self, number: int) -> None:
        """Our own change with that number is no news; all before it were looked at."""
        self._seen = number

    def take(self) -> list[str] | None:
        """The sessions that others have changed; None: more than is known."""
        changed, missed = self._changed, self._missed
        self._changed, self._missed = set(), False
        return None if missed else list(changed)


class Outcome(msgspec.Struct, gc=False):
    """What became of a group."""

    results: list[Any]
    """For each request what it returned, or the exception that it raised."""
    effects: list[Effect]
    """What was committed, in order."""
    foreign: list[str] | None
    """Sessions that others have changed; None: more than is known."""
    commits: int
    """How many transactions have changed something."""
    sync_bound: bool
    """Whether the last commit took longer than what was committed: the disk is slow to sync."""
    has_removals: bool = False
    """Whether somebody is seen to have left what a deleted session had. It is looked for now and then."""


class Writer:
    """Runs groups on one connection at a time.

    Args:
        node_id: Of the store.
        database: What names the database in errors.
    """

    def __init__(self, *, node_id: str, database: str) -> None:
        self._node_id = node_id
        self._database = database
        self.feed = ChangeFeed()

    def run(self, cursor: Cursor, requests: Sequence[Request], now: datetime) -> Outcome:
        """Run requests in one transaction, or, where that fails, each in its own.

        Never raises for a request: its error is its result.

        Args:
            cursor: Of a connection outside a transaction.
            requests: What waits, in order.
            now: The time of the transaction.
        """
        outcome = Outcome([], [], [], 0, False)
        try:
            try:
                outcome.results = self._together(cursor, requests, now, outcome, careful=False)
            except sqlite3.IntegrityError:  # most likely an event that is stored already
                outcome.results = self._together(cursor, requests, now, outcome, careful=True)
        except Exception as error:
            if isinstance(error, sqlite3.Error) and errors.is_busy(error):
                # Nothing was begun, and each alone would wait as long again.
                outcome.results = [self._reason(error) for _ in requests]
            else:
                outcome.results = self._one_by_one(cursor, requests, now, outcome)
        if not outcome.effects:  # else the last transaction has looked
            self._look(cursor)
        outcome.foreign = self.feed.take()
        return outcome

    def _look(self, cursor: Cursor) -> None:
        try:
            self.feed.look(cursor)
        except sqlite3.Error:  # out of reach just now: whoever waits looks again
            pass

    def _one_by_one(
        self, cursor: Cursor, requests: Sequence[Request], now: datetime, outcome: Outcome
    ) -> list[Any]:
        results: list[Any] = []
        for request in requests:
            try:
                results += self._together(cursor, [request], now, outcome, careful=True)
            except Exception as error:
                results.append(self._reason(error))
                if isinstance(error, sqlite3.Error) and errors.is_busy(error):  # and would be for each
                    results += [self._reason(error) for _ in requests[len(results) :]]
                    break
        return results

    def _together(
        self, cursor: Cursor, requests: Sequence[Request], now: datetime, outcome: Outcome, *, careful: bool
    ) -> list[Any]:
        if not requests:
            return []
        begin(cursor)
        began = time.perf_counter()
        try:
            results, effects, changed, number = self._requested(cursor, requests, now, careful=careful)
            if number is not None:
                self.feed.look(cursor, before=number)
                if number % FORGET_EVERY == 0:
                    cursor.execute(statements.FORGET_CHANGES, (number - KEPT_CHANGES,))
                    cursor.execute(statements.ANY_REMOVAL)
                    outcome.has_removals = bool(cursor.fetchone()[0])
            wrote = time.perf_counter()
            cursor.execute("COMMIT")  # where nothing was written this syncs nothing
        except BaseException:
            try:
                cursor.execute("ROLLBACK")
            except sqlite3.Error:  # the database has rolled back by itself
                pass
            raise
        if number is not None:
            self.feed.committed(number)
        outcome.effects += effects
        outcome.commits += changed
        outcome.sync_bound = time.perf_counter() - wrote > wrote - began
        return results

    def _requested(
        self, cursor: Cursor, requests: Sequence[Request], now: datetime, *, careful: bool
    ) -> tuple[list[Any], list[Effect], bool, int | None]:
        """Inside a transaction: results, effects, whether anything was written, the number of the change."""
        lone = None if careful else _lone_event(requests)
        if lone is not None:
            number = append_alone(cursor, lone)
            return [[lone[-1]]], [Appended([lone[-1]])], True, number
        transaction = Transaction(cursor, node_id=self._node_id, now=now, careful=careful)
        results = _results(transaction, requests)
        change = transaction.settle()
        return results, transaction.effects, transaction.wrote, change

    def _reason(self, error: Exception) -> AsmError:
        if isinstance(error, AsmError):
            return error
        if isinstance(error, sqlite3.Error):
            return errors.translated(error, self._database)
        failure = StoreError(f"{self._database}: the request failed: {error!r}")
        failure.__cause__ = error
        return failure


def _lone_event(requests: Sequence[Request]) -> EventRow | None:
    """The event, if to append it is all that is asked for."""
    if len(requests) == 1 and requests[0][0] is operations.append:
        rows: Sequence[EventRow]
        rows, fence = requests[0][1]
        if fence is None and len(rows) == 1:
            return rows[0]
    return None


def _results(transaction: Transaction, requests: Sequence[Request]) -> list[Any]:
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
