"""Groups of requests on a connection that writes."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from asm_runtime.stores.sql.group import Attempt, attempts, lone_event, results
from asm_runtime.stores.sql.outcome import Appended, Effect, Outcome, Request
from asm_runtime.stores.sql.sqlite import reading
from asm_runtime.stores.sql.sqlite.changes import FORGET_EVERY, ChangeFeed
from asm_runtime.stores.sql.sqlite.connections import Connections
from asm_runtime.stores.sql.sqlite.errors import ErrorTable
from asm_runtime.stores.sql.sqlite.opening import begin
from asm_runtime.stores.sql.sqlite.transaction import Cursor, SQLiteTransaction, append_alone

__all__ = ["Groups", "Writer"]


class Writer:
    """Runs each group in one hop to the thread that writes; see `stores.sql.database.Writer`.

    Args:
        connections: Of the database.
        node_id: Of the store.
    """

    def __init__(self, connections: Connections, node_id: str) -> None:
        self._connections = connections
        self.groups = Groups(name=connections.name, node_id=node_id)

    def write(self, requests: Sequence[Request], now: datetime) -> asyncio.Future[Outcome]:
        """See the protocol."""
        return self._connections.write(self.groups.run, requests, now)


class Groups:
    """Runs groups on one connection.

    Args:
        name: What names the database in errors.
        node_id: Of the store.
    """

    def __init__(self, *, name: str, node_id: str) -> None:
        self._errors = ErrorTable(name)
        self._node_id = node_id
        self.feed = ChangeFeed()

    def run(self, cursor: Cursor, requests: Sequence[Request], now: datetime) -> Outcome:
        """What `Writer.write` does, on a connection outside a transaction."""
        outcome = Outcome([], [], [], 0, False)
        trying = attempts(requests, self._errors)
        try:
            attempt = next(trying)
            while True:
                attempt = trying.send(self._tried(cursor, attempt, now, outcome))
        except StopIteration as done:
            outcome.results = done.value
        # The last transaction that changed something has looked.
        outcome.foreign = self.feed.take() if outcome.effects else self.feed.news(cursor)
        return outcome

    def _tried(
        self, cursor: Cursor, attempt: Attempt, now: datetime, outcome: Outcome
    ) -> list[Any] | Exception:
        try:
            return self._committed(cursor, attempt, now, outcome)
        except Exception as error:
            return error

    def _committed(self, cursor: Cursor, attempt: Attempt, now: datetime, outcome: Outcome) -> list[Any]:
        begin(cursor)
        began = time.perf_counter()
        try:
            results, effects, changed, number = self._requested(cursor, attempt, now)
            if number is not None:
                self.feed.look(cursor, before=number)
                if number % FORGET_EVERY == 0:
                    self.feed.forget(cursor, number)
                    outcome.has_removals = reading.has_removals(cursor)
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
        self, cursor: Cursor, attempt: Attempt, now: datetime
    ) -> tuple[list[Any], list[Effect], bool, int | None]:
        """Inside a transaction: results, effects, whether anything was written, the number of the change."""
        lone = lone_event(attempt)
        if lone is not None:
            number = append_alone(cursor, lone)
            return [[lone[-1]]], [Appended([lone[-1]])], True, number
        transaction = SQLiteTransaction(cursor, node_id=self._node_id, now=now, careful=attempt.careful)
        done = results(transaction, attempt.requests)
        change = transaction.settle()
        return done, transaction.effects, transaction.wrote, change
