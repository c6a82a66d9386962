"""Random lives of several processes on one file: they append, claim, delete, fork, end and are killed.

`ASM_SOAK=200 pytest tests/stores/sql/test_soak.py` takes that many steps instead of a few.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3

import pytest

from asm_runtime import Event
from asm_runtime.stores import SQLSessionStore
from tests.stores.sql.conftest import Node
from tests.stores.sql.test_processes import NewNode

STEPS = int(os.environ.get("ASM_SOAK", "24"))
SESSIONS = ("s", "t")
DELETED = "d"


class Life:
    """What the processes were told to do, and what they said was done."""

    def __init__(self, new_node: NewNode, seed: int) -> None:
        self._new_node = new_node
        self._random = random.Random(seed)
        self.nodes: list[Node] = []
        self.acknowledged: dict[str, set[str]] = {session: set() for session in SESSIONS}
        self.owners: dict[str, Node] = {}
        """Of the runs that were claimed."""
        self.forked: list[int] = []
        self._runs = 0

    async def step(self) -> None:
        if len(self.nodes) < 2:
            self.nodes.append(await self._new_node())
        node = self._random.choice(self.nodes)
        match self._random.choice(["append", "append", "together", "run", "fork", "kill", "delete", "end"]):
            case "append":
                await self._append(node)
            case "together":
                await asyncio.gather(*map(self._append, self.nodes))
            case "run":
                self._runs += 1
                await node.ask(f"enqueue runs r{self._runs}")
                claimed = await node.ask("claim runs")
                self.owners[claimed] = node
            case "fork":
                self.forked.append(int(await node.ask("fork")))
            case "kill":
                session = self._random.choice(SESSIONS)
                await node.tell(f"append-until-killed {session}")
                for _ in range(self._random.randrange(1, 6)):
                    self.acknowledged[session].add(await node.heard())
                self.nodes.remove(node)
                await node.kill()
            case "delete":
                await node.tell(f"delete-until-killed {DELETED}")
                for _ in range(self._random.randrange(1, 6)):
                    await node.heard()
                self.nodes.remove(node)
                await node.kill()
            case _:
                self.nodes.remove(node)
                assert node.process.stdin is not None
                node.process.stdin.close()
                assert await node.process.wait() == 0

    async def _append(self, node: Node) -> None:
        session = self._random.choice(SESSIONS)
        said = await node.ask(f"append-told {session} {self._random.randrange(1, 40)}")
        self.acknowledged[session].update(said.split())


@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_acknowledged_is_lost_and_no_number_left_out(
    node: NewNode, file: str, seed: int
) -> None:
    life = Life(node, seed)
    try:
        for _ in range(STEPS):
            await life.step()
        async with SQLSessionStore(f"sqlite:///{file}") as store:
            for session, ids in life.acknowledged.items():
                events = await store.get_events(session)
                assert [event.sequence_number for event in events] == list(range(1, len(events) + 1))
                assert ids <= {event.id for event in events}
            events = await store.get_events(DELETED)
            assert [event.sequence_number for event in events] == list(range(1, len(events) + 1))
            await store.delete_session(DELETED)
            (event,) = await store.append_events([Event.new(type="custom", session_id=DELETED)])
            assert event.sequence_number == 1
            assert await store.get_events(DELETED) == [event]
            orphans = {run.id for run in await store.list_orphaned_runs()}
            assert orphans == {run for run, owner in life.owners.items() if owner not in life.nodes}
    finally:
        for child in life.forked:
            os.kill(child, signal.SIGKILL)
    connection = await asyncio.to_thread(sqlite3.connect, file, check_same_thread=False)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
