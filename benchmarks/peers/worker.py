"""Measures the peers: reads requests as JSON lines, answers each with one.

Runs in the peers' environment, where there is nothing of asm_runtime. Both libraries are called as an
application on asyncio has to call them: OpenAI Agents' session brings its own threads, eventsourcing
blocks and is called through `asyncio.to_thread`. Each keeps its own schema and settings; that both
sync each commit (WAL, FULL) is asserted.

What an application hands over is made before the clock starts: a conversation's item, an event's payload.
What a library makes of it is on the clock: eventsourcing's recorder takes stored events, whose states its
mapper would have encoded.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

from agents import SQLiteSession
from eventsourcing.persistence import StoredEvent
from eventsourcing.sqlite import SQLiteApplicationRecorder, SQLiteDatastore

SESSIONS = 16
PAGE = 100
FULL = 2


class OpenAIAgents:
    """A conversation's items, one table of JSON texts for all sessions."""

    package = "openai-agents"

    def __init__(self, file: Path) -> None:
        self._file = file
        self._sessions: dict[str, SQLiteSession] = {}

    def _session(self, name: str) -> SQLiteSession:
        if name not in self._sessions:
            self._sessions[name] = SQLiteSession(name, self._file)
        return self._sessions[name]

    def synchronous(self) -> int:
        """How its connections sync."""
        with self._session("s")._locked_connection() as connection:
            return int(connection.execute("PRAGMA synchronous").fetchone()[0])

    @staticmethod
    def made(events: int) -> list[Any]:
        """What an application hands over."""
        return [{"role": "assistant", "content": "x" * 112} for _ in range(events)]

    async def append(self, log: str, made: list[Any]) -> None:
        """Append to a log, in one transaction."""
        await self._session(log).add_items(made)

    async def tail(self, log: str) -> int:
        """Read the newest events of a log, decoded; how many."""
        return len(await self._session(log).get_items(limit=PAGE))

    def close(self) -> None:
        """Close the connections."""
        for session in self._sessions.values():
            session.close()


class EventSourcing:
    """Stored events: log, version, topic, state."""

    package = "eventsourcing"

    def __init__(self, file: Path) -> None:
        self._datastore = SQLiteDatastore(str(file), lock_timeout=60, originator_id_type="text")
        self._recorder = SQLiteApplicationRecorder(self._datastore)
        self._recorder.create_table()
        self._versions: dict[str, Any] = {}

    def synchronous(self) -> int:
        """How its connections sync."""
        with self._datastore.transaction(commit=False) as cursor:
            cursor.execute("PRAGMA synchronous")
            return int(cursor.fetchone()[0])

    @staticmethod
    def made(events: int) -> list[Any]:
        """What an application hands over."""
        return [{"content": "x" * 112} for _ in range(events)]

    async def append(self, log: str, made: list[Any]) -> None:
        """Append to a log, in one transaction."""
        versions = self._versions.setdefault(log, count(1))
        events = [StoredEvent(log, next(versions), "streamed", json.dumps(one).encode()) for one in made]
        await asyncio.to_thread(self._recorder.insert_events, events)

    async def tail(self, log: str) -> int:
        """Read the newest events of a log, decoded; how many."""
        found = await asyncio.to_thread(self._recorder.select_events, log, desc=True, limit=PAGE)
        return len([json.loads(event.state) for event in reversed(found)])

    def close(self) -> None:
        """Close the connections."""
        self._datastore.close()


PEERS = {kind.package: kind for kind in (OpenAIAgents, EventSourcing)}
_opened: dict[str, Any] = {}


async def crowd(peer: Any, appenders: int, each: int) -> float:
    """Appends a second, with this many tasks that each await every append."""

    made = [peer.made(1) for _ in range(appenders * each)]

    async def appender(number: int) -> None:
        for one in made[number::appenders]:
            await peer.append(f"ses_{number % SESSIONS}", one)

    began = time.perf_counter()
    await asyncio.gather(*(appender(number) for number in range(appenders)))
    return appenders * each / (time.perf_counter() - began)


async def alone(peer: Any, appends: int, batch: int) -> float:
    """Events a second that the median append of one caller gives."""
    taken: list[float] = []
    for _ in range(appends):
        made = peer.made(batch)
        began = time.perf_counter()
        await peer.append("ses_0", made)
        taken.append(time.perf_counter() - began)
    return batch / statistics.median(taken)


async def fill(peer: Any, events: int) -> float:
    """Make a log to read from."""
    for _ in range(events // 1_000):
        await peer.append("long", peer.made(1_000))
    return events


async def tail(peer: Any, pages: int) -> float:
    """Pages a second."""
    began = time.perf_counter()
    for _ in range(pages):
        assert await peer.tail("long") == PAGE
    return pages / (time.perf_counter() - began)


async def reopen(peer: Any, file: str, times: int) -> float:
    """How often a second the file is opened, the newest page read, and the file closed."""
    began = time.perf_counter()
    for _ in range(times):
        opened = type(peer)(Path(file))
        assert await opened.tail("long") == PAGE
        opened.close()
    return times / (time.perf_counter() - began)


MEASURED: dict[str, Callable[..., Awaitable[float]]] = {
    "crowd": crowd,
    "alone": alone,
    "fill": fill,
    "tail": tail,
    "reopen": reopen,
}


async def answered(request: str, peer: str = "", **arguments: Any) -> Any:
    if request == "versions":
        return {name: version(name) for name in PEERS}
    if request == "open":
        opened = _opened[peer] = PEERS[peer](Path(arguments["file"]))
        return opened.synchronous() == FULL
    if request == "close":
        _opened.pop(peer).close()
        return True
    return await MEASURED[request](_opened[peer], **arguments)


def main() -> None:
    try:
        import uvloop
    except ImportError:
        new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    else:
        new_loop = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        for line in sys.stdin:
            print(json.dumps(runner.run(answered(**json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
