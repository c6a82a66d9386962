"""The lock files of nodes: whose they are, who may open them, and what becomes of those that are gone."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asm_runtime import Run
from asm_runtime.errors import StoreUnavailable
from asm_runtime.ids import new_id
from asm_runtime.ports import ExecutionResult
from asm_runtime.stores import SQLSessionStore
from asm_runtime.stores.sql.sqlite import nodes
from asm_runtime.stores.sql.sqlite.nodes import Nodes
from tests.stores.sql.conftest import ROOT
from tests.stores.sql.test_processes import NewNode

as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs other users")


@pytest.fixture
def place() -> Iterator[str]:
    """A folder that other users can reach."""
    with tempfile.TemporaryDirectory() as folder:
        yield folder


def scenario(name: str, folder: str) -> Any:
    process = subprocess.run(
        [sys.executable, "-m", "tests.stores.sql.sqlite.forking", name, f"{folder}/asm.db"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=100,
    )  # fmt: skip
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("mode", "of_folder", "of_files"),
    [(0o600, 0o700, 0o600), (0o644, 0o700, 0o600), (0o660, 0o770, 0o660), (0o666, 0o777, 0o666)],
)
async def test_lock_files_are_open_to_those_who_may_write_to_the_database(
    file: str, mode: int, of_folder: int, of_files: int
) -> None:
    await asyncio.to_thread(Path(file).touch)
    await asyncio.to_thread(os.chmod, file, mode)
    async with SQLSessionStore(f"sqlite:///{file}") as store:
        await store.claim_run("s")

        def found() -> set[int]:
            names = [name for name in os.listdir(f"{file}-nodes") if name != "log"]
            assert len(names) == 2
            return {stat.S_IMODE(os.stat(f"{file}-nodes/{name}").st_mode) for name in names}

        assert await asyncio.to_thread(found) == {of_files}
        assert stat.S_IMODE((await asyncio.to_thread(os.stat, f"{file}-nodes")).st_mode) == of_folder


@as_root
def test_a_visit_of_root_locks_nobody_out(place: str) -> None:
    before, killed, modes, after = scenario("visit_of_root", place)
    assert before == [[], True]
    assert killed == "killed"
    assert modes == {"asm": [65534, "0o700"], "ope": [65534, "0o600"], "nod": [65534, "0o600"]}
    assert after == [["r"], True]


@as_root
def test_lock_files_that_cannot_be_opened_stop_nothing_and_count_as_alive(place: str) -> None:
    assert scenario("files_of_root", place) == [[], True]


@as_root
def test_who_may_only_read_the_database_can_lock_nothing(place: str) -> None:
    assert scenario("strangers", place) == [""]


async def test_a_lock_file_that_was_removed_is_made_again(
    store: SQLSessionStore, file: str, node: NewNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "_LOOK_SECONDS", 0)
    await store.enqueue_run(Run.new(session_id="s", id="r"))
    await store.claim_run("s")
    await asyncio.to_thread(os.unlink, f"{file}-nodes/{store.node_id}")
    await store.enqueue_run(Run.new(session_id="s", id="r2"))  # any write
    async with SQLSessionStore(f"sqlite:///{file}") as other:
        assert await other.list_orphaned_runs() == []
    await asyncio.to_thread(os.unlink, f"{file}-nodes/{store.node_id}")
    assert await store.list_orphaned_runs() == []  # or a look for the dead
    async with SQLSessionStore(f"sqlite:///{file}") as other:
        assert await other.list_orphaned_runs() == []


async def test_a_store_that_owns_no_run_needs_no_lock_file(store: SQLSessionStore, file: str) -> None:
    await asyncio.to_thread(os.rename, f"{file}-nodes", f"{file}-elsewhere")
    await store.enqueue_run(Run.new(session_id="s", id="r"))
    assert await store.list_orphaned_runs() == []
    assert not await asyncio.to_thread(os.path.exists, f"{file}-nodes")


@pytest.mark.parametrize("how", ["claim", "save", "flush"])
async def test_others_see_a_node_alive_as_soon_as_a_run_is_its_own(
    store: SQLSessionStore, file: str, how: str
) -> None:
    run = Run.new(session_id="s", id="r")
    if how == "claim":
        await store.enqueue_run(run)
        await store.claim_run("s")
    elif how == "save":
        await store.save_run(run.replace(status="running", owner=store.node_id))
    else:
        await store.flush(ExecutionResult(run=run.replace(status="running", owner=store.node_id)))
    async with SQLSessionStore(f"sqlite:///{file}") as other:
        assert await other.list_orphaned_runs() == []
    assert await store.list_orphaned_runs() == []
    await store.stop()
    async with SQLSessionStore(f"sqlite:///{file}") as other:
        assert [orphan.id for orphan in await other.list_orphaned_runs()] == ["r"]


def test_whoever_tidies_up_between_the_making_and_the_locking_of_a_file_is_noticed(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(file).touch()
    joining, tidying = Nodes(file, new_id("nod_")), Nodes(file, new_id("nod_"))
    lock = nodes._lock
    tries = 0

    def late(descriptor: int, *, shared: bool = False) -> bool:
        nonlocal tries
        tries += not shared
        if not shared and tries == 1:
            assert tidying.dead([joining._node_id]) == [joining._node_id]
        return lock(descriptor, shared=shared)

    monkeypatch.setattr(nodes, "_lock", late)
    joining.join()
    assert tries == 2
    assert tidying.dead([joining._node_id]) == []
    joining.leave()


def test_a_file_that_stays_locked_by_others_ends_the_attempt(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(file).touch()

    def never(descriptor: int, *, shared: bool = False) -> bool:
        return False

    monkeypatch.setattr(nodes, "_lock", never)
    monkeypatch.setattr(nodes, "_RETRY_SECONDS", 0)
    joining = Nodes(file, new_id("nod_"))
    with pytest.raises(StoreUnavailable, match="cannot be locked"):
        joining.join()
    assert not joining.has_joined
    assert not joining._descriptors
