"""Whatever is written between the statements of a read, its answer is the log of one moment."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from random import Random
from typing import Any, cast

import pytest

from asm_runtime.ports import ExecutionResult
from asm_runtime.stores import SQLSessionStore
from asm_runtime.stores.filters import EventFilter
from asm_runtime.stores.sql import operations, paging
from asm_runtime.stores.sql.paging import Pages
from asm_runtime.stores.sql.rows import event_row
from asm_runtime.stores.sql.sqlite import transaction
from asm_runtime.stores.sql.sqlite.reader import Reader
from asm_runtime.stores.sql.sqlite.writer import Groups
from asm_runtime.testing.store_conformance import StoreModel, random_event, random_filter

NOW = datetime(2024, 1, 1, tzinfo=UTC)
"""Pages, bytes of a page, examined: the smallest, small ones, those of the release."""
SIZES = [(3, 200, 2, 4), (40, 2000, 10, 20), (paging.PAGE_ROWS, paging.PAGE_BYTES, 500, 2000)]


class Interrupted:
    """A database that is read on one connection; before each statement something may happen."""

    def __init__(self, connection: sqlite3.Connection, happen: Callable[[], None]) -> None:
        self._cursor = connection.cursor()
        self._happen = happen

    def execute(self, sql: str, parameters: Any = ()) -> None:
        self._happen()
        self._cursor.execute(sql, parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    async def read(self, job: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.to_thread(job, self, *args)


class Life:
    """What is written, in one life of a log, and what it was after each write."""

    def __init__(self, seed: int, connection: sqlite3.Connection) -> None:
        self.random = Random(seed)
        self.moments = [StoreModel()]
        self._cursor = connection.cursor()
        self._groups = Groups(name="d", node_id="n")

    def write(self) -> None:
        """Append a few, delete, or remove a little of what is left."""
        match self.random.choices(("append", "delete", "remove"), weights=(3, 1, 3))[0]:
            case "append":
                batch = [
                    random_event(self.random, 400).replace(session_id="s1")
                    for _ in range(self.random.choice((1, 5, 30)))
                ]
                self._written().flush(ExecutionResult(events=batch))
                self._run(operations.append, [event_row(event) for event in batch], None)
            case "delete":
                self._written().delete("s1")
                self._run(operations.delete_session, "s1")
            case _:
                self._run(operations.remove_left, ["s1"])

    def _written(self) -> StoreModel:
        model = StoreModel()
        model.events = {id: list(log) for id, log in self.moments[-1].events.items()}
        self.moments.append(model)
        return model

    def _run(self, operation: Callable[..., Any], *args: Any) -> None:
        for result in self._groups.run(self._cursor, [(operation, args)], NOW).results:
            assert not isinstance(result, BaseException), result


@pytest.fixture
def connections(file: str) -> Iterator[list[sqlite3.Connection]]:
    asyncio.run(_made(file))
    made = [sqlite3.connect(file, isolation_level=None, check_same_thread=False) for _ in range(2)]
    for connection in made:
        connection.execute("PRAGMA synchronous = OFF")
    with closing(made[0]), closing(made[1]):
        yield made


async def _made(file: str) -> None:
    async with SQLSessionStore(f"sqlite:///{file}"):
        pass


@pytest.mark.parametrize("sizes", SIZES, ids=["smallest", "small", "real"])
@pytest.mark.parametrize("seed", range(6))
async def test_an_answer_is_the_log_of_one_moment_whatever_happens_between_its_statements(
    connections: list[sqlite3.Connection],
    monkeypatch: pytest.MonkeyPatch,
    sizes: tuple[int, ...],
    seed: int,
) -> None:
    names = ("PAGE_ROWS", "PAGE_BYTES", "EXAMINED_AT_FIRST", "EXAMINED")
    for name, value in zip(names, sizes, strict=True):
        monkeypatch.setattr(paging, name, value)
    life = Life(seed, connections[0])
    random = life.random

    def happen() -> None:
        if random.random() < 0.3:
            life.write()

    pages = Pages(Reader(cast(Any, Interrupted(connections[1], happen))))
    for _ in range(60):
        monkeypatch.setattr(transaction, "REMOVED_AT_ONCE", random.choice((1, 3, 20, 500)))
        await asyncio.to_thread(life.write)
        filter = random_filter(random)
        if random.random() < 0.5:
            filter |= {"limit": None, "max_bytes": None, "after": None, "before": None}
        begun = len(life.moments) - 1
        events, head = await pages.events("s1", EventFilter.checked(**filter))
        possible = [
            (model.read("s1", **filter), len(model.events.get("s1", ()))) for model in life.moments[begun:]
        ]
        assert (events, head) in possible
