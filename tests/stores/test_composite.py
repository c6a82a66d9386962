"""Sessions and artifacts as one store: what belongs together, what fails alone."""

from __future__ import annotations

import asyncio
import inspect
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from asm_runtime import SessionManager
from asm_runtime.adapters import ScriptedAdapter
from asm_runtime.errors import (
    ActorStopped,
    ArtifactNotFound,
    SessionNotFound,
    StoreError,
    StoreUnavailable,
    ValidationError,
)
from asm_runtime.ports import ArtifactStats, ArtifactStore, SessionStore
from asm_runtime.records import Artifact, Event
from asm_runtime.stores import (
    ArtifactRegistry,
    CompositeSessionStore,
    FileArtifactStore,
    InMemoryArtifactRegistry,
    InMemorySessionStore,
    SQLSessionStore,
)
from asm_runtime.testing.artifact_conformance import found, pieces
from asm_runtime.testing.registry_conformance import artifact
from asm_runtime.testing.store_case import events, numbers, session
from tests.runtime.support import until


@pytest.fixture(params=["memory", "sqlite"])
async def sessions(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    is_sql = request.param == "sqlite"
    async with SQLSessionStore(f"sqlite:///{tmp_path}/asm.db") if is_sql else InMemorySessionStore() as store:
        yield store


@pytest.fixture
def registry(sessions: Any) -> Any:
    return (
        ArtifactRegistry(sessions)
        if isinstance(sessions, SQLSessionStore)
        else InMemoryArtifactRegistry(sessions)
    )


@pytest.fixture
def blobs(tmp_path: Path) -> FileArtifactStore:
    return FileArtifactStore(tmp_path / "blobs")


@pytest.fixture
async def store(sessions: Any, blobs: Any, registry: Any) -> AsyncIterator[CompositeSessionStore]:
    async with CompositeSessionStore(sessions=sessions, artifacts=blobs, registry=registry) as store:
        yield store


async def kept(blobs: FileArtifactStore) -> list[str]:
    return [blob.key async for blob in blobs.list()]


# -- one store for both ports


@pytest.mark.parametrize("port", [SessionStore, ArtifactStore])
def test_every_method_takes_what_its_port_says(port: type) -> None:
    for name, promised in vars(port).items():
        if inspect.isfunction(promised) and not name.startswith("_") and name not in ("start", "stop"):
            own = inspect.signature(getattr(CompositeSessionStore, name)).parameters.values()
            assert [(one.name, one.kind, one.default) for one in own] == [
                (one.name, one.kind, one.default) for one in inspect.signature(promised).parameters.values()
            ], name


async def test_before_its_start_and_after_its_stop_it_refuses_every_call(sessions: Any, blobs: Any) -> None:
    store = CompositeSessionStore(sessions=sessions, artifacts=blobs)

    async def refused() -> None:
        for call in (
            lambda: store.put("k", b"x"),
            lambda: store.get("k"),
            lambda: anext(store.stream("k")),
            lambda: store.exists("k"),
            lambda: store.delete("k"),
            lambda: anext(store.list()),
            lambda: store.get_events("s"),
            lambda: store.delete_session("s"),
        ):
            with pytest.raises(ActorStopped):
                await call()

    await refused()
    async with store:
        await store.put("k", b"x")
    await refused()
    with pytest.raises(ActorStopped):
        await store.start()


@pytest.mark.parametrize(
    "wrong",
    [{"sessions": None}, {"artifacts": "blobs"}, {"prefix": 5}, {"prefix": "x" * 477}, {"prefix": "\n"}],
)
def test_what_is_no_store_is_refused(wrong: dict[str, Any], blobs: FileArtifactStore) -> None:
    sessions = InMemorySessionStore()
    given: dict[str, Any] = {
        "sessions": sessions,
        "artifacts": blobs,
        "registry": InMemoryArtifactRegistry(sessions),
    }
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        CompositeSessionStore(**(given | wrong))


# -- its life


async def test_it_starts_and_stops_what_was_not_running(tmp_path: Path, blobs: FileArtifactStore) -> None:
    mine = SQLSessionStore(f"sqlite:///{tmp_path}/asm.db")
    async with CompositeSessionStore(sessions=mine, artifacts=blobs) as store:
        assert mine.is_running
        await store.append_events(events(1))
    assert not mine.is_running

    async with InMemorySessionStore() as others:
        async with CompositeSessionStore(sessions=others, artifacts=blobs):
            pass
        assert others.is_running
        assert await others.get_latest_sequence("s") == 0


async def test_a_failed_start_leaves_nothing_running(blobs: FileArtifactStore) -> None:
    class Broken(FileArtifactStore):
        async def start(self) -> None:
            raise StoreUnavailable("not today")

    sessions = InMemorySessionStore()
    store = CompositeSessionStore(sessions=sessions, artifacts=Broken("blobs"))
    with pytest.raises(StoreUnavailable):
        await store.start()
    assert not sessions.is_running
    assert not store.is_running


async def test_its_stop_answers_who_waits_though_the_sessions_go_on(
    sessions: Any, blobs: FileArtifactStore
) -> None:
    store = await CompositeSessionStore(sessions=sessions, artifacts=blobs).start()
    revision = await store.wait_for_runs("s", timeout_ms=0)
    for_events = asyncio.create_task(store.get_events("s", wait_timeout_ms=3_600_000))
    for_runs = asyncio.create_task(store.wait_for_runs("s", after=revision, timeout_ms=None))
    cancelled = asyncio.create_task(store.get_events("s", wait_timeout_ms=3_600_000))
    await until(lambda: len(store._parked) == 3)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    await store.stop()
    assert await for_events == []
    assert await for_runs == revision
    assert await sessions.append_events(events(1))


async def test_a_long_poll_holds_up_nothing_and_is_answered(store: CompositeSessionStore) -> None:
    poll = asyncio.create_task(store.get_events("s", wait_timeout_ms=3_600_000))
    await until(lambda: store._parked)
    await store.put("k", b"x")
    assert await store.get("k") == b"x"
    await store.append_event(Event.new(type="custom", session_id="s"))
    assert numbers(await poll) == [1]


async def test_a_manager_works_on_it(store: CompositeSessionStore) -> None:
    result = await SessionManager(store, ScriptedAdapter()).run_once({"prompt": "hello"})
    await store.put("notes", b"x", session_id=result.session_id, run_id=result.run_id)
    assert (await store.get_run(result.run_id)).status == "completed"


# -- without a registry


async def test_without_a_registry_blobs_keep_their_keys_and_outlive_their_session(
    sessions: Any, blobs: FileArtifactStore
) -> None:
    async with CompositeSessionStore(sessions=sessions, artifacts=blobs) as store:
        await store.save_session(session("s"))
        await store.put("k", b"x", session_id="s")
        assert await blobs.get("k") == b"x"
        await store.delete_session("s")
        assert await store.get("k") == b"x"
        with pytest.raises(SessionNotFound):
            await store.get_session("s")


# -- with one


async def test_a_put_writes_a_new_blob_and_its_row(
    store: CompositeSessionStore, blobs: FileArtifactStore, registry: Any
) -> None:
    row = await store.put("k", b"abc", session_id="s", run_id="r", content_type="a/b", metadata={"a": 1})
    assert await registry.get("k") == row
    assert (row.key, row.storage_ref) == ("k", f"artifacts/{row.id}")
    assert await kept(blobs) == [row.storage_ref]
    assert await registry.session_stats("s") == ArtifactStats(artifact_count=1, total_bytes=3)


async def test_a_put_again_leaves_one_live_row_and_one_blob(
    store: CompositeSessionStore, blobs: FileArtifactStore, registry: Any
) -> None:
    await store.put("k", b"old")
    row = await store.put("k", pieces(b"n", b"ew"))
    assert await kept(blobs) == [row.storage_ref]
    assert await registry.list_artifacts() == [row]
    assert len(await registry.list_artifacts(include_deleted=True)) == 2
    await asyncio.gather(*(store.put("k", bytes([number])) for number in range(10)))
    assert await kept(blobs) == [(await registry.get("k")).storage_ref]


async def test_two_of_them_replace_each_others_rows_and_leave_no_blob(
    sessions: Any, blobs: FileArtifactStore, registry: Any
) -> None:
    one = CompositeSessionStore(sessions=sessions, artifacts=blobs, registry=registry)
    other = CompositeSessionStore(sessions=sessions, artifacts=blobs, registry=registry)
    async with one, other:

        async def life(store: CompositeSessionStore, seed: int) -> None:
            for number in range(15):
                await store.put("k", bytes([seed + number]))
                if number % 4 == seed % 4:
                    await store.delete("k")

        await asyncio.gather(life(one, 0), life(other, 1), life(one, 2))
        await one.put("k", b"last")
        assert await kept(blobs) == [(await registry.get("k")).storage_ref]


async def test_a_deleted_artifact_takes_its_blob(
    store: CompositeSessionStore, blobs: FileArtifactStore, registry: Any
) -> None:
    await store.put("k", b"x")
    await store.delete("k")
    await store.delete("k")
    assert await kept(blobs) == []
    with pytest.raises(ArtifactNotFound):
        await registry.get("k")


async def test_everything_else_goes_by_live_rows(
    store: CompositeSessionStore, blobs: FileArtifactStore, registry: Any
) -> None:
    await blobs.put("artifacts/left", b"over")
    with pytest.raises(ArtifactNotFound):
        await store.get("artifacts/left")
    assert not await store.exists("artifacts/left")
    assert await found(store) == {}
    record = await blobs.put("by/hand", b"xyz")
    await registry.register(record)
    assert await store.get("by/hand") == b"xyz"
    assert await found(store) == {"by/hand": 3}
    await registry.delete("by/hand")
    assert not await store.exists("by/hand")


async def test_a_deleted_session_takes_its_blobs_and_no_others(
    store: CompositeSessionStore, blobs: FileArtifactStore, registry: Any
) -> None:
    await store.save_session(session("s"))
    for number in range(30):
        await store.put(f"k{number % 20}", b"x", session_id="s")
    other = await store.put("other", b"x", session_id="t")
    none = await store.put("none", b"x")
    await store.delete_session("s")
    await store.delete_session("s")
    assert set(await kept(blobs)) == {other.storage_ref, none.storage_ref}
    assert await registry.list_artifacts(include_deleted=True) == [other, none]


async def test_a_registry_of_another_database_loses_the_sessions_rows_too(
    blobs: FileArtifactStore, tmp_path: Path
) -> None:
    async with SQLSessionStore(f"sqlite:///{tmp_path}/rows.db") as rows:
        registry = ArtifactRegistry(rows)
        async with CompositeSessionStore(
            sessions=InMemorySessionStore(), artifacts=blobs, registry=registry
        ) as store:
            await store.put("k", b"x", session_id="s")
            await store.delete_session("s")
        assert await registry.list_artifacts() == []
        assert await kept(blobs) == []


@pytest.mark.parametrize("damage", ["missing", "longer", "shorter", "other"])
async def test_a_blob_unlike_its_row_is_an_error(
    store: CompositeSessionStore, blobs: FileArtifactStore, damage: str
) -> None:
    row = await store.put("k", b"0123456789" * 20_000)
    if damage == "missing":
        await blobs.delete(row.storage_ref)
    else:
        size = {"longer": 300_000, "shorter": 10, "other": 200_000}[damage]
        await blobs.put(row.storage_ref, b"x" * size)
    with pytest.raises(StoreError, match="'k'"):
        await store.get("k")
    with pytest.raises(StoreError, match="'k'"):
        [piece async for piece in store.stream("k", chunk_size=50_000)]
    assert await store.exists("k")
    await store.put("k", b"mended")
    assert await store.get("k") == b"mended"


async def test_a_reader_that_was_overtaken_reads_the_new_version(
    store: CompositeSessionStore, blobs: FileArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put("k", b"old")
    read, stream = blobs.get, blobs.stream
    overtaken = 0

    async def overtake() -> None:
        nonlocal overtaken
        if overtaken < 3:
            overtaken += 1
            await store.put("k", b"new %d" % overtaken)

    async def late_get(key: str) -> bytes:
        await overtake()
        return await read(key)

    async def late_stream(key: str, *, chunk_size: int) -> AsyncIterator[bytes]:
        await overtake()
        async for piece in stream(key, chunk_size=chunk_size):
            yield piece

    monkeypatch.setattr(blobs, "get", late_get)
    assert await store.get("k") == b"new 3"
    monkeypatch.setattr(blobs, "stream", late_stream)
    overtaken = 0
    assert b"".join([piece async for piece in store.stream("k")]) == b"new 3"
    overtaken = 2
    monkeypatch.setattr(blobs, "get", read)
    await store.delete("k")
    with pytest.raises(ArtifactNotFound):
        await store.get("k")


# -- what fails


class Fault:
    """Has a method of something fail, as long as it is broken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, of: Any, *names: str) -> None:
        self.is_broken = False
        for name in names:
            monkeypatch.setattr(of, name, self._faulty(getattr(of, name)))

    def _faulty(self, method: Any) -> Any:
        async def faulty(*args: Any, **options: Any) -> Any:
            if self.is_broken:
                raise StoreUnavailable("broken")
            return await method(*args, **options)

        return faulty


async def test_a_row_that_cannot_be_written_leaves_the_old_version(
    store: CompositeSessionStore, blobs: FileArtifactStore, registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = await store.put("k", b"old")
    fault = Fault(monkeypatch, registry, "register")
    fault.is_broken = True
    for key in ("k", "new"):
        with pytest.raises(StoreUnavailable):
            await store.put(key, b"new")
    assert await store.get("k") == b"old"
    assert await kept(blobs) == [row.storage_ref]
    assert await registry.list_artifacts(include_deleted=True) == [row]


async def test_a_blob_that_cannot_be_removed_fails_nobody(
    store: CompositeSessionStore,
    blobs: FileArtifactStore,
    registry: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await store.put("k", b"old", session_id="s")
    await store.put("k2", b"old")
    fault = Fault(monkeypatch, blobs, "delete")
    fault.is_broken = True
    with caplog.at_level(logging.WARNING):
        row = await store.put("k", b"new", session_id="s")
        await store.delete("k2")
        await store.delete_session("s")
    assert len([record for record in caplog.records if "no row any more" in record.message]) >= 3
    assert await registry.list_artifacts() == []
    assert len(await kept(blobs)) == 3
    assert row.storage_ref in await kept(blobs)


async def test_failing_blobs_hold_up_no_session(
    store: CompositeSessionStore, blobs: FileArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = asyncio.Event()

    async def hang(*args: Any, **options: Any) -> Any:
        await hangs.wait()
        raise StoreUnavailable("late")

    monkeypatch.setattr(blobs, "put", hang)
    puts = [asyncio.create_task(store.put("k", b"x")) for _ in range(3)]
    assert numbers(await store.append_events(events(3))) == [1, 2, 3]
    await store.stop()
    hangs.set()
    for put in puts:
        with pytest.raises((StoreUnavailable, ActorStopped)):
            await put


async def test_whenever_a_put_is_cancelled_row_and_blob_agree(
    store: CompositeSessionStore, blobs: FileArtifactStore, registry: Any
) -> None:
    await store.put("k", b"old")
    for steps in range(40):
        put = asyncio.create_task(store.put("k", str(steps).encode()))
        for _ in range(steps):
            await asyncio.sleep(0)
        put.cancel()
        await asyncio.wait([put])
        blob = await store.get("k")
        assert blob == b"old" or int(blob) <= steps
    assert store._registered is not None
    await until(lambda: store._registered is None or not store._registered._tasks)
    row: Artifact = await registry.get("k")
    assert await kept(blobs) == [row.storage_ref]


async def test_whenever_a_deletion_is_cancelled_it_is_done_whole(
    store: CompositeSessionStore, blobs: FileArtifactStore, registry: Any
) -> None:
    for steps in range(15):
        await store.put("k", b"x", session_id="s")
        deletion = asyncio.create_task(store.delete_session("s"))
        for _ in range(steps):
            await asyncio.sleep(0)
        deletion.cancel()
        await asyncio.wait([deletion])
        await until(lambda: store._registered is None or not store._registered._tasks)
        assert [row.storage_ref for row in await registry.list_artifacts()] == await kept(blobs)
        await store.delete_session("s")
        assert await kept(blobs) == []


async def test_a_stop_waits_for_a_replacement_that_is_under_way(
    blobs: FileArtifactStore, tmp_path: Path
) -> None:
    sessions = SQLSessionStore(f"sqlite:///{tmp_path}/asm.db")
    store = await CompositeSessionStore(
        sessions=sessions, artifacts=blobs, registry=ArtifactRegistry(sessions)
    ).start()
    await store.put("k", b"old")
    put = asyncio.create_task(store.put("k", b"new"))
    await until(lambda: store._registered is not None and store._registered._tasks)
    await store.stop()
    row = await put
    async with SQLSessionStore(f"sqlite:///{tmp_path}/asm.db") as again:
        assert await ArtifactRegistry(again).get("k") == row
    assert await kept(blobs) == [row.storage_ref]


WRITER = """
import asyncio, sys
from asm_runtime.stores import ArtifactRegistry, CompositeSessionStore, FileArtifactStore, SQLSessionStore

async def main(place):
    sessions = SQLSessionStore(f"sqlite:///{place}/asm.db")
    async with CompositeSessionStore(
        sessions=sessions, artifacts=FileArtifactStore(f"{place}/blobs"), registry=ArtifactRegistry(sessions)
    ) as store:
        number = int(sys.argv[2])
        while True:
            number += 1
            await store.put(f"k{number % 3}", b"%08d" % number * 5_000, session_id="s")
            if number % 5 == 0:
                await store.delete(f"k{number % 2}")
            print(number, flush=True)

asyncio.run(main(sys.argv[1]))
"""


async def test_a_process_that_is_killed_leaves_no_row_without_its_blob(
    tmp_path: Path, blobs: FileArtifactStore
) -> None:
    random, number = Random(3), 0
    for _ in range(5):
        writer = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITER, str(tmp_path), str(number), stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        for _ in range(random.randint(3, 20)):
            number = int(await writer.stdout.readline())
        for _ in range(random.randint(0, 300)):
            await asyncio.sleep(0)
        writer.kill()
        rest, _ = await writer.communicate()
        number = max([number, *map(int, rest.split())])
        async with SQLSessionStore(f"sqlite:///{tmp_path}/asm.db") as sessions:
            registry = ArtifactRegistry(sessions)
            async with CompositeSessionStore(sessions=sessions, artifacts=blobs, registry=registry) as store:
                keys = [blob.key async for blob in store.list()]
                for key in keys:
                    blob = await store.get(key)
                    assert blob == blob[:8] * 5_000
                assert len(await kept(blobs)) >= len(keys)
    assert number >= 15


# -- registries


def test_a_registry_is_made_of_its_kind_of_store(blobs: FileArtifactStore) -> None:
    memory, sql = InMemorySessionStore(), SQLSessionStore("sqlite://")
    composite = CompositeSessionStore(
        sessions=CompositeSessionStore(sessions=memory, artifacts=blobs), artifacts=blobs
    )
    assert "InMemorySessionStore" in repr(InMemoryArtifactRegistry(composite))
    assert "sqlite://" in repr(ArtifactRegistry(sql))
    no_memory: list[Any] = [sql, None, "sqlite://"]
    for wrong in no_memory:
        with pytest.raises(ValidationError):
            InMemoryArtifactRegistry(wrong)
    no_sql: list[Any] = [memory, composite, None, "sqlite://u:secret@h/"]
    for wrong in no_sql:
        with pytest.raises(ValidationError) as refused:
            ArtifactRegistry(wrong)
        assert "secret" not in str(refused.value)


async def test_rows_in_a_file_outlive_their_store(tmp_path: Path) -> None:
    row = artifact("k")
    for _ in range(2):
        async with SQLSessionStore(f"sqlite:///{tmp_path}/asm.db") as sessions:
            assert await ArtifactRegistry(sessions).register(row) == row
