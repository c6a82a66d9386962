"""Groups of requests on the connection that writes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from itertools import groupby
from random import uniform
from typing import Any

from asm_runtime.errors import StoreUnavailable
from asm_runtime.stores.sql import operations
from asm_runtime.stores.sql.group import Attempt, attempts, results
from asm_runtime.stores.sql.outcome import Deleted, Outcome, Request
from asm_runtime.stores.sql.postgres import removing, statements
from asm_runtime.stores.sql.postgres.connections import Connection, Settings
from asm_runtime.stores.sql.postgres.errors import ErrorTable, is_lost, is_repeatable, translated
from asm_runtime.stores.sql.postgres.facts import Needs, read_facts
from asm_runtime.stores.sql.postgres.transaction import PostgresTransaction

__all__ = ["Writer"]

logger = logging.getLogger(__name__)

REPEATS = 5
"""How often a transaction is tried that the server ends for the sake of another one."""

LOOKS_AT_COMMIT = 20
"""How often it is asked for what became of a commit whose answer was lost, in half a minute or more."""

LOOK_FOR_REMOVALS_EVERY = 64
"""After how many commits it is looked for what others have left."""

_ALONE = (operations.delete_session, operations.remove_left)


class Writer:
    """Runs each group with a constant number of round trips; see `stores.sql.database.Writer`.

    Requests that delete are transactions of their own, between those of their neighbours.

    Args:
        settings: How to connect.
        node_id: Of the store.
        ring: Told of the sessions that a transaction has changed.
    """

    def __init__(self, settings: Settings, node_id: str, ring: Callable[[Sequence[str]], None]) -> None:
        self._settings = settings
        self._node_id = node_id
        self._ring = ring
        self._errors = ErrorTable(settings.name)
        self._turn = asyncio.Lock()
        self._connection: Connection | None = None
        self._groups: set[asyncio.Task[Outcome]] = set()
        self._commits = 0

    def write(self, requests: Sequence[Request], now: datetime) -> asyncio.Future[Outcome]:
        """See the protocol."""
        group = asyncio.get_running_loop().create_task(self._write(requests, now))
        self._groups.add(group)
        group.add_done_callback(self._groups.discard)
        return group

    async def close(self) -> None:
        """Finish what waits, then disconnect. Idempotent."""
        while self._groups:
            await asyncio.wait(self._groups)
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    def close_soon(self) -> None:
        """Begin to close, and wait for nothing."""
        if self._groups:
            closing = asyncio.get_running_loop().create_task(self.close())
            closing.add_done_callback(lambda _: None)
        elif self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _write(self, requests: Sequence[Request], now: datetime) -> Outcome:
        outcome = Outcome([], [], [], 0, sync_bound=False)
        async with self._turn:
            for alone, neighbours in groupby(requests, key=lambda request: request[0] in _ALONE):
                for part in ([one] for one in neighbours) if alone else [list(neighbours)]:
                    outcome.results += await self._run(part, now, outcome)
        return outcome

    async def _run(self, requests: Sequence[Request], now: datetime, outcome: Outcome) -> list[Any]:
        trying = attempts(requests, self._errors)
        try:
            attempt = next(trying)
            while True:
                attempt = trying.send(await self._tried(attempt, now, outcome))
        except StopIteration as done:
            answers: list[Any] = done.value
            return answers

    async def _tried(self, attempt: Attempt, now: datetime, outcome: Outcome) -> list[Any] | Exception:
        for repeat in range(REPEATS):
            try:
                return await self._committed(attempt, now, outcome)
            except Exception as error:
                if not is_repeatable(error) or repeat == REPEATS - 1:
                    return error
                await asyncio.sleep(uniform(0, 0.01 * 2**repeat))
        raise AssertionError

    async def _committed(self, attempt: Attempt, now: datetime, outcome: Outcome) -> list[Any]:
        if attempt.requests[0][0] in _ALONE:
            return [await self._removed(attempt.requests[0], outcome)]
        async with self._transaction() as transaction:
            connection = transaction.connection
            facts = await read_facts(connection, Needs(attempt.requests), careful=attempt.careful)
            work = PostgresTransaction(facts, node_id=self._node_id, now=now, careful=attempt.careful)
            done = results(work, attempt.requests)
            if work.has_written:
                await work.settle(connection)
                transaction.commits_as = facts.xact
        if transaction.has_committed:
            outcome.effects += work.effects
            await self._changed(work.changed, outcome)
        return done

    async def _removed(self, request: Request, outcome: Outcome) -> bool | list[str]:
        operation, arguments = request
        answer: bool | list[str]
        async with self._transaction() as transaction:
            if operation is operations.remove_left:
                answer = await removing.remove_left(transaction.connection, *arguments)
                existed = False
            else:
                existed, answer = await removing.delete_session(transaction.connection, *arguments)
            transaction.commits_as = await transaction.connection.fetchval(
                "SELECT pg_current_xact_id()::text"
            )
        if operation is operations.delete_session:
            outcome.effects.append(Deleted(arguments[0]))
            await self._changed([arguments[0]] if existed else [], outcome)
        else:
            outcome.commits += 1
        return answer

    async def _changed(self, session_ids: Sequence[str], outcome: Outcome) -> None:
        outcome.commits += 1
        self._commits += 1
        if session_ids:
            self._ring(session_ids)
        if self._commits % LOOK_FOR_REMOVALS_EVERY == 0 and self._connection is not None:
            try:
                outcome.has_removals = bool(await self._connection.fetchval(statements.ANY_REMOVAL))
            except Exception as error:  # the next write finds out
                logger.debug("%s: %r", self._settings.name, error)

    @asynccontextmanager
    async def _transaction(self) -> AsyncGenerator[_Transaction]:
        """Begin a transaction, and end it."""
        transaction = _Transaction(await self._begun())
        try:
            yield transaction
            if transaction.commits_as is None:
                await transaction.connection.execute("ROLLBACK")
                return
        except BaseException as error:
            await self._rolled_back(error)
            raise
        try:
            await transaction.connection.execute("COMMIT")
        except Exception as error:
            await self._rolled_back(error)
            if not is_lost(error) or not await self._has_committed(transaction.commits_as, error):
                raise
        transaction.has_committed = True

    async def _begun(self) -> Connection:
        """A connection inside a new transaction; nothing is lost yet if the old one is broken."""
        if self._connection is not None and not self._connection.is_closed():
            try:
                await self._connection.execute(statements.BEGIN)
                return self._connection
            except Exception as error:
                self._connection.terminate()
                self._connection = None
                if not is_lost(error) or isinstance(error, TimeoutError):
                    raise
        connection = await self._settings.connect()
        self._connection = connection
        await connection.execute(statements.BEGIN)
        return connection

    async def _rolled_back(self, error: BaseException) -> None:
        connection = self._connection
        if connection is None:
            return
        if isinstance(error, Exception) and not is_lost(error):
            try:
                await connection.execute("ROLLBACK")
                return
            except Exception:
                logger.debug("%s: the connection is given up", self._settings.name, exc_info=True)
        connection.terminate()
        self._connection = None

    async def _has_committed(self, xact: str, lost: Exception) -> bool:
        """What became of a commit whose answer was lost.

        Raises:
            StoreUnavailable: The server cannot be asked for too long.
        """
        pause = 0.05
        for _ in range(LOOKS_AT_COMMIT):
            try:
                connection = await self._settings.connect()
                try:
                    status = await connection.fetchval(statements.XACT_STATUS, xact)
                finally:
                    connection.terminate()
            except Exception as error:
                if translated(error, self._settings.name) is None:
                    raise
                status = None
            if status in ("committed", "aborted"):
                return bool(status == "committed")
            await asyncio.sleep(uniform(pause / 2, pause))
            pause = min(2 * pause, 2.0)
        raise StoreUnavailable(
            f"{self._settings.name}: the connection was lost during a commit, and nothing is known of "
            "what became of it",
            details={"database": self._settings.name, "transaction": xact},
        ) from lost


class _Transaction:
    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.commits_as: str | None = None
        """The number under which it is to be committed; None: there is nothing to commit."""
        self.has_committed = False
