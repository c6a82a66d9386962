"""One SQLite file, several processes: side by side, killed, frozen, forked."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

from asm_runtime import Event, Run
from asm_runtime.stores import SQLSessionStore
from tests.stores.sql.conftest import Node

NewNode = Callable[..., Awaitable[Node]]


async def test_twenty_processes_that_open_one_new_file_at_once_all_succeed(node: NewNode) -> None:
    nodes = await asyncio.gather(*(node("append", "s", "3") for _ in range(20)))
    for each in nodes:
        assert await each.heard() == "appended"
        assert await each.process.wait() == 0
    survivor = await node()
    assert await survivor.ask("wait s 0") == " ".join(map(str, range(1, 61)))


async def test_processes_that_append_to_one_session_number_it_without_gap(
    store: SQLSessionStore, node: NewNode
) -> None:
    nodes = [await node() for _ in range(3)]
    said = [asyncio.ensure_future(each.ask("append s 40")) for each in nodes]
    mine = [Event.new(type="custom", session_id="s") for _ in range(40)]
    stored = await asyncio.gather(*map(store.append_event_with_sequence, mine))
    await asyncio.gather(*said)
    found = await store.get_events("s")
    assert [event.sequence_number for event in found] == list(range(1, 161))
    assert [event for event in found if event.id in {one.id for one in mine}] == stored


async def test_a_waiter_is_woken_by_an_append_in_another_process(
    store: SQLSessionStore, node: NewNode
) -> None:
    other = await node()
    await store.append_event(Event.new(type="custom", session_id="s"))
    waiting = asyncio.create_task(store.get_events("s", after=1, wait_timeout_ms=60_000))
    assert await other.ask("append s 1") == "appended"
    assert [event.sequence_number for event in await waiting] == [2]
    await other.tell("wait s 2")
    await store.append_event(Event.new(type="custom", session_id="s"))
    assert await other.heard() == "3"


async def test_a_change_of_runs_in_another_process_wakes_who_waits_for_it(
    store: SQLSessionStore, node: NewNode
) -> None:
    other = await node()
    waiting = asyncio.create_task(store.wait_for_runs("s", after=0, timeout_ms=60_000))
    await other.ask("enqueue s r")
    assert await waiting > 0


async def test_what_was_acknowledged_survives_kill_9(node: NewNode, file: str) -> None:
    victim = await node("append-until-killed", "s")
    acknowledged = [await victim.heard() for _ in range(50)]
    await victim.kill()
    async with SQLSessionStore(f"sqlite:///{file}") as store:
        found = await store.get_events("s")
    assert [event.id for event in found[:50]] == acknowledged
    assert [event.sequence_number for event in found] == list(range(1, len(found) + 1))


async def test_a_kill_between_commit_and_acknowledgement_keeps_the_event_once(
    node: NewNode, file: str
) -> None:
    victim = await node("append-and-die", "s", "e")
    assert await victim.process.wait() == -signal.SIGKILL
    async with SQLSessionStore(f"sqlite:///{file}") as store:
        again = await store.append_event_with_sequence(Event.new(type="custom", session_id="s", id="e"))
        assert again.sequence_number == 1
        assert await store.get_latest_sequence("s") == 1


async def test_the_runs_of_a_killed_process_are_orphans_at_once(
    store: SQLSessionStore, node: NewNode
) -> None:
    await store.enqueue_run(Run.new(session_id="s", id="r"))
    victim = await node()
    assert await victim.ask("claim s") == "r"
    assert await store.list_orphaned_runs() == []
    await victim.kill()
    assert [run.id for run in await store.list_orphaned_runs()] == ["r"]
    assert [run.id for run in await store.list_orphaned_runs(session_id="s")] == ["r"]
    assert await store.list_orphaned_runs(session_id="other") == []


async def test_a_frozen_process_keeps_its_runs(store: SQLSessionStore, node: NewNode) -> None:
    await store.enqueue_run(Run.new(session_id="s", id="r"))
    frozen = await node()
    assert await frozen.ask("claim s") == "r"
    frozen.process.send_signal(signal.SIGSTOP)
    assert await store.list_orphaned_runs() == []
    frozen.process.send_signal(signal.SIGCONT)


async def test_a_forked_child_does_not_keep_its_dead_parent_alive(
    store: SQLSessionStore, node: NewNode
) -> None:
    await store.enqueue_run(Run.new(session_id="s", id="r"))
    parent = await node()
    assert await parent.ask("claim s") == "r"
    child = int(await parent.ask("fork"))
    try:
        await parent.kill()
        assert [run.id for run in await store.list_orphaned_runs()] == ["r"]
    finally:
        os.kill(child, signal.SIGKILL)


async def test_the_lock_files_of_the_dead_are_removed(
    store: SQLSessionStore, node: NewNode, file: str
) -> None:
    def nodes() -> set[str]:
        return {name for name in os.listdir(f"{file}-nodes") if name.startswith("nod_")}

    victim = await node()
    assert await asyncio.to_thread(nodes) == set()  # only who claims is told of
    await victim.ask("claim s")
    assert len(await asyncio.to_thread(nodes)) == 1
    await victim.kill()
    await store.claim_run("s")
    assert await asyncio.to_thread(nodes) == {store.node_id}
    await store.stop()
    assert await asyncio.to_thread(nodes) == set()
