"""What happens to the files of a database while it is open, or before."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from asm_runtime import Event, Run
from asm_runtime.errors import StoreError, StoreUnavailable
from asm_runtime.stores import SQLSessionStore
from asm_runtime.stores.sql.sqlite import connections, engine
from tests.stores.sql.conftest import ROOT
from tests.stores.sql.sqlite import inside
from tests.stores.sql.test_processes import NewNode

PARTS = ["", "-wal", "-shm"]


def event(session_id: str = "s") -> Event:
    return Event.new(type="custom", session_id=session_id)


async def numbers(file: str) -> list[int]:
    async with SQLSessionStore(f"sqlite:///{file}") as store:
        return [one.sequence_number or 0 for one in await store.get_events("s")]


@pytest.mark.parametrize("kind", ["reads only", "has written", "has not written yet"])
async def test_a_relative_path_stays_that_of_the_file_wherever_the_process_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        async with SQLSessionStore(f"sqlite:///{tmp_path}/{folder}/asm.db") as store:
            await store.append_event(event(folder))
    there = {path: path.lstat().st_mtime_ns for path in (tmp_path / "there").rglob("*")}
    monkeypatch.chdir(tmp_path / "here")
    async with SQLSessionStore("sqlite:///asm.db", read_only=kind == "reads only") as store:
        if kind == "has written":
            await store.append_event(event("here"))
        monkeypatch.chdir(tmp_path / "there")
        pages = await asyncio.gather(*(store.get_events("here") for _ in range(3)))
        assert all(pages)
        if kind != "reads only":
            await store.append_event(event("here"))
            await store.enqueue_run(Run.new(session_id="here"))
            assert await store.claim_run("here")
    assert {path: path.lstat().st_mtime_ns for path in (tmp_path / "there").rglob("*")} == there
    assert await numbers(str(tmp_path / "there" / "asm.db")) == []


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("how", ["deleted", "replaced"])
@pytest.mark.parametrize("settled", [True, False])
async def test_nothing_is_acknowledged_that_went_to_a_file_which_is_gone(
    file: str, tmp_path: Path, part: str, how: str, settled: bool
) -> None:
    store = await SQLSessionStore(f"sqlite:///{file}").start()
    if settled:  # the folder was changed long ago: its time is enough to see that nothing has
        os.utime(tmp_path, (1, 1))
    for _ in range(3):
        await store.append_event(event())
    if how == "deleted":
        await asyncio.to_thread(os.unlink, file + part)
    else:
        await asyncio.to_thread(shutil.copy, file + part, f"{file}-copy")
        await asyncio.to_thread(os.replace, f"{file}-copy", file + part)
    for _ in range(2):
        with pytest.raises(StoreError, match=f"was {how} while it was open") as refused:
            await store.append_event(event())
        assert not refused.value.retryable
    with pytest.raises(StoreError, match="while it was open"):
        await store.claim_run("s")
    await store.stop()


async def test_an_append_under_way_when_the_file_is_replaced_is_not_acknowledged(
    store: SQLSessionStore, file: str
) -> None:
    await store.append_event(event())
    replaced = asyncio.Event()

    def replace(_: Any) -> None:
        shutil.copy(file, f"{file}-copy")
        os.replace(f"{file}-copy", file)
        store._loop.call_soon_threadsafe(replaced.set)

    with pytest.raises(StoreError, match="was replaced while it was open"):
        await inside.connections(store).write(replace)
    assert replaced.is_set()


async def test_other_files_may_come_and_go_in_the_folder(store: SQLSessionStore, tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / str(number)).touch()
        await store.append_event(event())
    assert await store.get_latest_sequence("s") == 5


async def test_a_store_that_never_wrote_opens_no_file_that_came_in_the_place_of_its_own(
    store: SQLSessionStore, file: str
) -> None:
    await asyncio.to_thread(shutil.move, file, f"{file}-old")
    with pytest.raises(StoreError, match="database file was deleted"):
        await store.append_event(event())
    assert not await asyncio.to_thread(os.path.exists, file)


async def test_the_log_of_a_file_that_was_there_before_is_not_written_into_a_restored_one(
    file: str, node: NewNode
) -> None:
    backup = f"{file}-backup"
    async with SQLSessionStore(f"sqlite:///{file}") as store:
        await store.append_event(event())
    await asyncio.to_thread(shutil.copy, file, backup)
    victim = await node()
    await victim.ask("append s 20")
    await asyncio.to_thread(os.replace, backup, file)  # under the process that has the old one open
    with pytest.raises(StoreError, match="beside it lies the log of the file that was there before"):
        await SQLSessionStore(f"sqlite:///{file}").start()
    await victim.kill()
    with pytest.raises(StoreError, match="beside it lies the log"):
        await SQLSessionStore(f"sqlite:///{file}").start()
    for part in ("-wal", "-shm"):
        await asyncio.to_thread(os.unlink, file + part)
    assert await numbers(file) == [1]


async def test_whose_the_log_is_stands_beside_it_whatever_a_killed_process_left_there(file: str) -> None:
    record = Path(f"{file}-nodes/log")
    for left in (False, True):
        async with SQLSessionStore(f"sqlite:///{file}") as store:
            await store.append_event(event())
            found = f"{os.stat(file).st_ino}:{os.stat(f'{file}-wal').st_ino}"
            assert await asyncio.to_thread(os.readlink, record) == found
        await asyncio.to_thread(record.unlink)
        if not left:
            await asyncio.to_thread(os.symlink, "1:2", f"{record}-{os.getpid()}")
    assert await asyncio.to_thread(os.listdir, record.parent) == ["opening"]


async def test_a_store_whose_file_was_replaced_leaves_the_log_of_the_new_one_alone(
    file: str, node: NewNode
) -> None:
    old = await SQLSessionStore(f"sqlite:///{file}").start()
    await old.append_event(event())
    for part in PARTS:
        await asyncio.to_thread(os.replace, file + part, f"{file}-old{part}")
    assert await (await node("append-and-die", "s", "e")).process.wait()
    await old.stop()
    assert await numbers(file) == [1]
    assert await numbers(f"{file}-old") == [1]


async def test_a_store_whose_log_was_deleted_leaves_the_next_one_alone(file: str, node: NewNode) -> None:
    assert await numbers(file) == []
    old = await SQLSessionStore(f"sqlite:///{file}").start()
    await old.append_event(event())
    for part in ("-wal", "-shm"):
        await asyncio.to_thread(os.unlink, file + part)
    assert await (await node("append-and-die", "s", "e")).process.wait()
    await old.stop()
    async with SQLSessionStore(f"sqlite:///{file}") as store:
        assert [one.id for one in await store.get_events("s")] == ["e"]


@pytest.mark.parametrize("keeps_nodes", [True, False])
async def test_a_database_that_was_killed_can_be_copied_with_its_log(
    file: str, node: NewNode, keeps_nodes: bool
) -> None:
    victim = await node()
    await victim.ask("append s 3")
    await victim.kill()
    copy = f"{file}-copy"
    for part in PARTS:
        await asyncio.to_thread(shutil.copy, file + part, copy + part)
    if keeps_nodes:
        await asyncio.to_thread(shutil.copytree, f"{file}-nodes", f"{copy}-nodes", symlinks=True)
    assert await numbers(copy) == [1, 2, 3]
    assert await numbers(file) == [1, 2, 3]


async def test_a_file_with_two_names_is_refused_by_either(file: str) -> None:
    assert await numbers(file) == []
    await asyncio.to_thread(os.link, file, f"{file}-other")
    for name in (file, f"{file}-other"):
        with pytest.raises(StoreError, match="has 2 names"):
            await SQLSessionStore(f"sqlite:///{name}").start()
    await asyncio.to_thread(os.unlink, f"{file}-other")
    assert await numbers(file) == []


async def test_a_file_that_is_mounted_without_its_folder_is_refused(file: str, tmp_path: Path) -> None:
    assert await numbers(file) == []
    other = tmp_path / "other"
    other.mkdir()
    (other / "asm.db").touch()
    program = f"""
import asyncio
from asm_runtime.stores import SQLSessionStore
from tests.stores.sql.sqlite.inside import connections
asyncio.run(SQLSessionStore("sqlite:///{other}/asm.db").start())
"""
    mounted = await asyncio.to_thread(
        subprocess.run,
        ["unshare", "--mount", "--map-root-user", "sh", "-c", 'mount --bind "$1" "$2" && exec "$3" -c "$4"',
         "sh", file, str(other / "asm.db"), sys.executable, program],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    if "Traceback" not in mounted.stderr:
        pytest.skip(f"no mounts here: {mounted.stderr}")
    assert "is mounted without its folder" in mounted.stderr
    assert os.listdir(other) == ["asm.db"]


async def test_a_folder_that_cannot_be_looked_into_fails_the_write_and_no_more(
    store: SQLSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.append_event(event())
    stat = os.stat

    def refuse(path: Any, **options: Any) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(StoreUnavailable, match="Permission denied"):
        await store.append_event(event())
    monkeypatch.setattr(os, "stat", stat)
    await store.append_event(event())


async def test_the_log_shrinks_when_a_reader_who_held_it_up_lets_go(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "WAL_PAGES", 50)
    monkeypatch.setattr(connections, "LOG_BYTES", 400_000)
    reader = await asyncio.to_thread(sqlite3.connect, file, isolation_level=None, check_same_thread=False)
    async with SQLSessionStore(f"sqlite:///{file}", synchronous="NORMAL") as store:
        await store.append_event(event())
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM asm_events").fetchone()
        for _ in range(20):
            await store.append_event(event().replace(data={"text": "x" * 100_000}))
        assert (await asyncio.to_thread(os.stat, f"{file}-wal")).st_size > 2_000_000
        reader.execute("COMMIT")
        for _ in range(3):
            await store.append_event(event())
        assert (await asyncio.to_thread(os.stat, f"{file}-wal")).st_size <= 400_000
    reader.close()


@pytest.mark.parametrize("how", ["deleted", "replaced"])
async def test_an_engine_acknowledges_nothing_either(
    file: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "LOOK_SECONDS", 0)
    made = await asyncio.to_thread(create_async_engine, f"sqlite+aiosqlite:///{file}")
    async with SQLSessionStore(made) as store:
        await store.append_event(event())
        if how == "deleted":
            await asyncio.to_thread(os.unlink, file)
        else:
            await asyncio.to_thread(shutil.copy, file, f"{file}-copy")
            await asyncio.to_thread(os.replace, f"{file}-copy", file)
        for _ in range(2):
            with pytest.raises(StoreError, match=f"database file was {how} while it was open"):
                await store.append_event(event())
    await made.dispose()


async def test_an_engine_is_refused_a_file_with_two_names(file: str) -> None:
    assert await numbers(file) == []
    await asyncio.to_thread(os.link, file, f"{file}-other")
    made = await asyncio.to_thread(create_async_engine, f"sqlite+aiosqlite:///{file}")
    with pytest.raises(StoreError, match="has 2 names"):
        await SQLSessionStore(made).start()
    await made.dispose()
