"""A store that only reads: beside nobody, beside a writer, and where it may not write at all."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from asm_runtime import Event, Run, Session
from asm_runtime.errors import ActorStopped, MigrationRequired, StoreError, StoreUnavailable, ValidationError
from asm_runtime.ports import ExecutionResult, Fence
from asm_runtime.stores import SQLSessionStore
from tests.stores.sql.conftest import ROOT
from tests.stores.sql.sqlite.inside import connections
from tests.stores.sql.test_processes import NewNode

ORDINARY_USER = 65534


def events(count: int) -> list[Event]:
    return [Event.new(type="custom", session_id="s") for _ in range(count)]


def url(file: str) -> str:
    return f"sqlite:///{file}"


async def filled(file: str) -> None:
    async with SQLSessionStore(url(file)) as store:
        await store.save_session(Session.new(agent_id="a", id="s"))
        await store.save_run(Run.new(session_id="s", id="r"))
        await store.append_events(events(3))


def contents(folder: Path) -> dict[str, Any]:
    """Everything in a folder: names, sizes, times, and what is in the files."""
    found: dict[str, Any] = {"": os.stat(folder).st_mtime_ns}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        text = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path)] = (status.st_mtime_ns, status.st_size, hashlib.sha256(text).hexdigest())
    return found


async def all_there_is(store: SQLSessionStore) -> list[Any]:
    """The answers of a store that is `filled`, whose log may be longer by now."""
    return [
        [session.id for session in await store.list_sessions()],
        (await store.get_session("s")).id,
        [run.id for run in await store.list_runs("s")],
        (await store.get_run("r")).id,
        await store.get_active_run("s"),
        [event.sequence_number for event in await store.get_events("s")],
        await store.get_latest_sequence("s"),
        await store.list_orphaned_runs(),
        await store.wait_for_runs("s", timeout_ms=0) > 0,
    ]


def answers(count: int) -> list[Any]:
    return [["s"], "s", ["r"], "r", None, list(range(1, count + 1)), count, [], True]


async def test_a_file_at_rest_is_read_and_nothing_is_made_or_changed(file: str, tmp_path: Path) -> None:
    await filled(file)
    before = await asyncio.to_thread(contents, tmp_path)
    async with SQLSessionStore(url(file), read_only=True) as store:
        assert await all_there_is(store) == answers(3)
        assert await asyncio.to_thread(contents, tmp_path) == before
    assert await asyncio.to_thread(contents, tmp_path) == before


async def test_a_name_with_marks_of_a_url_is_the_name_of_a_file(tmp_path: Path) -> None:
    file = f"{tmp_path}/50%23#a b.db"
    await filled(file)
    async with SQLSessionStore(url(file), read_only=True) as store:
        assert await all_there_is(store) == answers(3)


async def test_every_call_that_writes_is_refused(file: str, tmp_path: Path) -> None:
    await filled(file)
    before = await asyncio.to_thread(contents, tmp_path)
    async with SQLSessionStore(url(file), read_only=True) as store:
        run, fence = Run.new(session_id="s"), Fence(session_id="s", run_id="r", attempt=1)
        for call in (
            store.save_session(Session.new(agent_id="a")),
            store.delete_session("s"),
            store.save_run(run),
            store.flush(ExecutionResult(run=run)),
            store.append_event(*events(1)),
            store.append_event_with_sequence(*events(1)),
            store.append_events(events(2)),
            store.enqueue_run(run),
            store.claim_run("s"),
            store.release_run(fence),
        ):
            with pytest.raises(ValidationError, match="open for reading only"):
                await call
        assert await all_there_is(store) == answers(3)
    assert await asyncio.to_thread(contents, tmp_path) == before


async def test_what_others_append_is_seen_from_the_first_moment_on(file: str, node: NewNode) -> None:
    await filled(file)
    async with SQLSessionStore(url(file), read_only=True) as store:
        assert await store.get_latest_sequence("s") == 3
        other = await node()
        await other.ask("append s 1")
        assert await all_there_is(store) == answers(4)
        await other.ask("append s 1")
        assert await all_there_is(store) == answers(5)
        await other.kill()
        assert await all_there_is(store) == answers(5)
        async with SQLSessionStore(url(file)) as writer:
            await writer.append_events(events(1))
            assert await all_there_is(store) == answers(6)
        assert await all_there_is(store) == answers(6)


async def test_who_waits_at_a_file_at_rest_is_woken_by_who_comes(file: str, node: NewNode) -> None:
    await filled(file)
    async with SQLSessionStore(url(file), read_only=True) as store:
        for number in (4, 5):
            waiting = asyncio.create_task(store.get_events("s", after=number - 1, wait_timeout_ms=60_000))
            other = await node()
            await other.ask("append s 1")
            assert [event.sequence_number for event in await waiting] == [number]
            await other.kill()


async def test_writers_may_come_and_go_while_it_reads(file: str) -> None:
    await filled(file)
    written = 3

    async def come_and_go() -> None:
        nonlocal written
        for _ in range(20):
            async with SQLSessionStore(url(file), synchronous="NORMAL") as writer:
                await writer.append_events(events(5))
                written += 5

    async with SQLSessionStore(url(file), read_only=True) as store:
        writers = asyncio.create_task(come_and_go())
        while not writers.done():
            acknowledged = written
            log = [event.sequence_number for event in await store.get_events("s")]
            assert log == list(range(1, len(log) + 1))
            assert len(log) >= acknowledged
        await writers
        assert await all_there_is(store) == answers(103)


async def test_a_file_that_was_left_in_the_middle_is_read_with_its_log(
    file: str, tmp_path: Path, node: NewNode
) -> None:
    await filled(file)
    other = await node()
    await other.ask("append s 2")
    await other.kill()
    before = await asyncio.to_thread(os.listdir, tmp_path)
    async with SQLSessionStore(url(file), read_only=True) as store:
        assert await all_there_is(store) == answers(5)
    assert await asyncio.to_thread(os.listdir, tmp_path) == before


async def test_the_orphans_of_a_node_that_died_are_seen_and_its_file_stays(
    file: str, tmp_path: Path, node: NewNode
) -> None:
    await filled(file)
    async with SQLSessionStore(url(file)) as writer:
        await writer.enqueue_run(Run.new(session_id="t", id="q"))
    other = await node()
    assert await other.ask("claim t") == "q"
    nodes = await asyncio.to_thread(os.listdir, f"{file}-nodes")
    async with SQLSessionStore(url(file), read_only=True) as store:
        assert await store.list_orphaned_runs() == []
        await other.kill()
        assert [run.id for run in await store.list_orphaned_runs()] == ["q"]
    assert await asyncio.to_thread(os.listdir, f"{file}-nodes") == nodes


async def test_who_comes_while_it_stops_has_it_opened_no_more(file: str, node: NewNode) -> None:
    await filled(file)
    store = await SQLSessionStore(url(file), read_only=True).start()
    reading = connections(store).read(lambda _: hold())
    at_work, gate = threading.Event(), threading.Event()

    def hold() -> None:
        at_work.set()
        gate.wait()

    task = asyncio.ensure_future(reading)
    await asyncio.to_thread(at_work.wait)
    await node()  # and the file is no longer at rest
    stop = asyncio.ensure_future(store.stop())
    while connections(store)._view is not None:  # type: ignore[attr-defined]
        await asyncio.sleep(0)
    gate.set()
    with pytest.raises(ActorStopped):
        await task
    await stop
    assert connections(store)._view is None  # type: ignore[attr-defined]


async def test_what_is_not_there_is_not_made(tmp_path: Path) -> None:
    for place in (f"{tmp_path}/none.db", f"{tmp_path}/nowhere/none.db"):
        with pytest.raises(StoreUnavailable, match=r"none\.db|nowhere"):
            await SQLSessionStore(url(place), read_only=True).start()
    assert await asyncio.to_thread(os.listdir, tmp_path) == []


async def test_another_schema_or_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    empty, other, text = (tmp_path / name for name in ("empty.db", "other.db", "text.db"))
    await asyncio.to_thread(empty.touch)
    await asyncio.to_thread(text.write_text, "no database at all" * 100)
    await filled(str(other))

    def age() -> None:
        connection = sqlite3.connect(other)
        with connection:
            connection.execute("UPDATE asm_schema_version SET version_num = '0000'")
        connection.close()

    await asyncio.to_thread(age)
    before = await asyncio.to_thread(contents, tmp_path)
    for path, kind in ((empty, MigrationRequired), (other, MigrationRequired), (text, StoreError)):
        with pytest.raises(kind):
            await SQLSessionStore(url(str(path)), read_only=True).start()
    assert await asyncio.to_thread(contents, tmp_path) == before


def test_only_a_file_can_be_read_only() -> None:
    for where in ("sqlite://", create_async_engine("sqlite+aiosqlite://")):
        with pytest.raises(ValidationError, match="read_only"):
            SQLSessionStore(where, read_only=True)
    with pytest.raises(ValidationError, match="migrate"):
        SQLSessionStore("sqlite:///a.db", read_only=True, migrate=True)
    with pytest.raises(ValidationError, match="read_only"):
        SQLSessionStore("sqlite:///a.db", read_only=1)  # type: ignore[arg-type]


# -- as somebody who may read and no more

PROGRAM = """
import asyncio, json, os, sys
from asm_runtime.errors import AsmError
from asm_runtime.stores import SQLSessionStore

async def main():
    if os.getuid() == 0:
        os.setgid({user})
        os.setuid({user})
    try:
        open(sys.argv[1], "a")
    except OSError:
        pass
    else:
        sys.exit("it can write")
    async with SQLSessionStore(f"sqlite:///{{sys.argv[1]}}", read_only=True) as store:
        print(json.dumps([event.sequence_number for event in await store.get_events("s")]), flush=True)
        if sys.stdin.readline():
            found = await store.get_events("s", after=int(sys.argv[2]), wait_timeout_ms=60_000)
            print(json.dumps([event.sequence_number for event in found]), flush=True)

asyncio.run(main())
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder into which everybody may look, below folders of which that is true."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def let_read(folder: Path) -> None:
    """Have everybody read what is in a folder, and nobody write there."""
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(0o444)
    folder.chmod(0o555)


def reader(file: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(user=ORDINARY_USER), str(file), *args],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_an_ordinary_user_reads_a_file_at_rest_in_a_folder_that_is_read_only(public: Path) -> None:
    asyncio.run(filled(f"{public}/asm.db"))
    let_read(public)
    before = contents(public)
    said, _ = reader(public / "asm.db").communicate(timeout=60)
    assert json.loads(said) == [1, 2, 3]
    assert contents(public) == before


def test_an_ordinary_user_reads_what_a_killed_writer_has_left_there(public: Path) -> None:
    file = public / "asm.db"
    asyncio.run(filled(str(file)))
    command = [sys.executable, "-m", "tests.stores.sql.node", str(file), "append-and-die", "s", "e"]
    subprocess.run(command, cwd=ROOT, check=False, timeout=60)
    let_read(public)
    before = contents(public)
    assert f"{file}-wal" in before
    said, _ = reader(file).communicate(timeout=60)
    assert json.loads(said) == [1, 2, 3, 4]
    assert contents(public) == before


@pytest.mark.skipif(os.getuid() != 0, reason="a folder of another user takes root")
async def test_an_ordinary_user_reads_beside_a_writer_in_a_folder_of_the_writer(public: Path) -> None:
    file = public / "asm.db"
    await filled(str(file))
    async with SQLSessionStore(url(str(file))) as writer:
        await writer.append_events(events(1))
        await asyncio.to_thread(let_read, public)
        process = reader(file, "4")
        assert process.stdout is not None
        assert process.stdin is not None
        assert json.loads(await asyncio.to_thread(process.stdout.readline)) == [1, 2, 3, 4]
        process.stdin.write("go on\n")
        await asyncio.to_thread(process.stdin.flush)
        await writer.append_events(events(1))
        assert json.loads(await asyncio.to_thread(process.stdout.readline)) == [5]
        await asyncio.to_thread(process.communicate)
    left = await asyncio.to_thread(os.listdir, public)
    assert sorted(left) == ["asm.db", "asm.db-nodes"]
