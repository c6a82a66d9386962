"""How does it compare with other libraries that keep events in SQLite?

Events, pages or openings a second beside OpenAI Agents' `SQLiteSession` and eventsourcing, each as an
application on asyncio calls it, and beside the raw driver on the smallest table that can hold a log.
Payloads of 128 bytes, a sync with each commit (FULL), each variant on a file of its own. The peers run
in a process and an environment of their own (`make .venv-peers/.installed`); without it they are left
out. Each runs in many short blocks, in turn: the machine and its disk drift. What an application hands
over (an event, an item, a payload) is made before the clock starts. What the peers do less: OpenAI
Agents' items have no ids and no numbers; eventsourcing leaves numbering to the caller, who has to try
again after a conflict; neither can be waited on. A lone caller's figure is what its median append would
give: the disk's sync drifts.
"""

from __future__ import annotations

import sqlite3
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from asm_runtime import Event
from asm_runtime.ids import new_id
from asm_runtime.stores import SQLSessionStore
from benchmarks.bench_append import APPENDERS, append_rate
from benchmarks.harness import Harness, Variant
from benchmarks.peers import Peers, peers
from benchmarks.stores import PAYLOAD, event, folder

PAGE, BATCH, LONG = 100, 100, 10_000
OPENAI, EVENTSOURCING = "openai-agents", "eventsourcing"
RAW = "raw driver"


async def measure(harness: Harness) -> None:
    """Answer the question."""
    with folder() as place:
        async with peers() as others, SQLSessionStore(f"sqlite:///{place}/store.db") as store:
            if others is None:
                harness.note("  the peers are not installed: `make .venv-peers/.installed`")
            else:
                harness.environment.update(await others.ask("versions"))
                for peer in (OPENAI, EVENTSOURCING):
                    synced = await others.ask("open", peer=peer, file=f"{place}/{peer}.db")
                    assert synced, f"{peer} does not sync each commit"
            raw = Raw(place / "raw.db")
            try:
                await beside(harness, place, store, raw, others)
            finally:
                raw.close()
                if others is not None:
                    for peer in (OPENAI, EVENTSOURCING):
                        await others.ask("close", peer=peer)


async def beside(
    harness: Harness, place: Path, store: SQLSessionStore, raw: Raw, others: Peers | None
) -> None:
    """The five questions."""

    def variants(request: str, ours: Variant, driver: Variant | None, **arguments: Any) -> dict[str, Variant]:
        made = {"store": ours}
        if others is not None:
            for peer in (OPENAI, EVENTSOURCING):
                files = {"file": f"{place}/{peer}.db"} if request == "reopen" else {}
                made[peer] = partial(others.ask, request, peer=peer, **arguments, **files)
        if driver is not None:
            made[RAW] = driver
        return made

    blocks = harness.size(4 * harness.repetitions, 2)
    each, appends, batches = harness.size(10, 2), harness.size(60, 10), harness.size(12, 4)
    case = f"{APPENDERS} at once"
    ours = partial(append_rate, store, APPENDERS, each)
    await harness.compare(
        case,
        variants("crowd", ours, None, appenders=APPENDERS, each=max(1, each // 10)),
        unit="events/s",
        repetitions=blocks,
    )
    if others is not None:
        best = harness.best(case, OPENAI, EVENTSOURCING)
        harness.ratio(case, "store", best, at_least=15, goal=20)

    case = "one after another"
    await harness.compare(
        case,
        variants("alone", partial(alone, store, appends, 1), raw.lone(appends, 1), appends=appends, batch=1),
        unit="events/s",
        repetitions=blocks,
    )
    harness.ratio(case, "store", RAW, at_least=0.7)
    if others is not None:
        harness.ratio(case, "store", OPENAI, at_least=0.9, goal=1.05)

    case = f"batches of {BATCH}, one caller"
    await harness.compare(
        case,
        variants(
            "alone",
            partial(alone, store, batches, BATCH),
            raw.lone(batches, BATCH),
            appends=batches,
            batch=BATCH,
        ),
        unit="events/s",
        repetitions=blocks,
    )
    if others is not None:
        best = harness.best(case, OPENAI, EVENTSOURCING)
        harness.ratio(case, "store", best, at_least=0.9)

    for first in range(0, LONG, 1_000):
        await store.append_events([_long() for _ in range(first, first + 1_000)])
    raw.fill(LONG)
    if others is not None:
        for peer in (OPENAI, EVENTSOURCING):
            await others.ask("fill", peer=peer, events=LONG)
    pages = harness.size(60, 10)
    case = f"tail of {PAGE} behind {LONG}"
    await harness.compare(
        case,
        variants("tail", partial(tail, store, pages), partial(raw.tail, pages), pages=pages),
        unit="pages/s",
        repetitions=blocks,
    )
    harness.ratio(case, "store", RAW, at_least=0.45)
    if others is not None:
        harness.ratio(case, "store", OPENAI, at_least=1.2)

    times = harness.size(15, 2)
    case = "open the file, read the tail"
    await harness.compare(
        case,
        variants(
            "reopen",
            partial(reopen, f"sqlite:///{place}/store.db", times),
            partial(raw.reopen, times),
            times=times,
        ),
        unit="openings/s",
        repetitions=blocks,
    )
    if others is not None:
        harness.ratio(case, "store", OPENAI, at_least=1)


def _long() -> Event:
    return Event.new(type="message_streamed", session_id="long", data=PAYLOAD)


async def alone(store: SQLSessionStore, appends: int, batch: int) -> float:
    """Events a second that the median append of one caller gives."""
    taken: list[float] = []
    for _ in range(appends):
        new = [event() for _ in range(batch)]
        began = time.perf_counter()
        if batch == 1:
            await store.append_event_with_sequence(new[0])
        else:
            await store.append_events(new)
        taken.append(time.perf_counter() - began)
    return batch / statistics.median(taken)


async def tail(store: SQLSessionStore, pages: int) -> float:
    """Newest pages a second."""
    began = time.perf_counter()
    for _ in range(pages):
        assert len(await store.get_events("long", limit=PAGE, order="desc")) == PAGE
    return pages / (time.perf_counter() - began)


async def reopen(url: str, times: int) -> float:
    """How often a second the file is opened, the newest page read, and the file closed."""
    began = time.perf_counter()
    for _ in range(times):
        async with SQLSessionStore(url) as store:
            assert len(await store.get_events("long", limit=PAGE, order="desc")) == PAGE
    return times / (time.perf_counter() - began)


class Raw:
    """The driver on the smallest table that can hold a log: no thread, no checks, rows made beforehand."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._connection = self._connected()
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute(
            "CREATE TABLE log (session_id TEXT, number INTEGER, id TEXT, data TEXT, "
            "PRIMARY KEY (session_id, number)) WITHOUT ROWID"
        )
        self._next = 1

    def _connected(self) -> sqlite3.Connection:
        return sqlite3.connect(self._file, isolation_level=None)

    def _rows(self, count: int, session: str) -> list[tuple[str, int, str, str]]:
        first, self._next = self._next, self._next + count
        data = '{"content":"' + "x" * 112 + '"}'
        return [(session, number, new_id("evt_"), data) for number in range(first, first + count)]

    def _insert(self, rows: list[tuple[str, int, str, str]]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT INTO log VALUES (?, ?, ?, ?)", rows)
        self._connection.execute("COMMIT")

    def lone(self, appends: int, batch: int) -> Variant:
        """Events a second that the median append gives."""

        async def measured() -> float:
            taken: list[float] = []
            for _ in range(appends):
                rows = self._rows(batch, "ses_0")
                began = time.perf_counter()
                self._insert(rows)
                taken.append(time.perf_counter() - began)
            return batch / statistics.median(taken)

        return measured

    def fill(self, count: int) -> None:
        """Make a log to read from."""
        self._insert(self._rows(count, "long"))

    @staticmethod
    def _tail(connection: sqlite3.Connection) -> int:
        rows = connection.execute(
            "SELECT number, id, data FROM log WHERE session_id = 'long' ORDER BY number DESC LIMIT 100"
        ).fetchall()
        return len([(number, id, msgspec.json.decode(data)) for number, id, data in reversed(rows)])

    async def tail(self, pages: int) -> float:
        """Newest pages a second."""
        began = time.perf_counter()
        for _ in range(pages):
            assert self._tail(self._connection) == PAGE
        return pages / (time.perf_counter() - began)

    async def reopen(self, times: int) -> float:
        """How often a second the file is opened, the newest page read, and the file closed."""
        began = time.perf_counter()
        for _ in range(times):
            connection = self._connected()
            assert self._tail(connection) == PAGE
            connection.close()
        return times / (time.perf_counter() - began)

    def close(self) -> None:
        """Close it."""
        self._connection.close()
