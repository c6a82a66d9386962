"""Blobs in a folder, on a real disk: what lies there, who may see it, what breaks and what does not."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from asm_runtime.errors import ArtifactNotFound, StoreError, StoreUnavailable, ValidationError
from asm_runtime.stores import FileArtifactStore
from asm_runtime.stores.artifacts import folder as folder_module
from asm_runtime.stores.artifacts.disk_errors import FOR_NOW, translated
from asm_runtime.stores.artifacts.keys import file_path

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "blobs"


@pytest.fixture
def store(root: Path) -> FileArtifactStore:
    return FileArtifactStore(root)


def place_of(root: Path, key: str) -> Path:
    return root.joinpath(*file_path(key))


def found_under(root: Path) -> list[Path]:
    return sorted(root.rglob("*"))


async def listed(store: FileArtifactStore) -> list[str]:
    return sorted([blob.key async for blob in store.list()])


# -- what lies on the disk


async def test_a_blob_is_a_file_that_says_its_key(store: FileArtifactStore, root: Path) -> None:
    await store.put("run 1/patch.diff", b"x")
    files = [path.relative_to(root).name for path in found_under(root) if path.is_file()]
    assert files == ["b-run=201+patch.diff"]


@posix
async def test_what_is_made_is_its_owners_alone(store: FileArtifactStore, root: Path, tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        await store.put("k", b"x")
        await store.put("x" * 512, b"x")
    finally:
        os.umask(mask)
    for path in [tmp_path / "deep", *(tmp_path / "deep").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


async def test_reading_makes_nothing(store: FileArtifactStore, root: Path) -> None:
    with pytest.raises(ArtifactNotFound):
        await store.get("k")
    assert not await store.exists("k")
    await store.delete("k")
    assert await listed(store) == []
    assert not root.parent.exists()


async def test_folders_of_long_names_go_with_their_last_blob(store: FileArtifactStore, root: Path) -> None:
    keys = ["é" * 256, "é" * 255 + "e"]
    await asyncio.gather(*(store.put(key, b"x") for key in keys))
    for key in keys:
        await store.delete(key)
    assert [path for path in found_under(root) if path.name.startswith("d-")] == []
    await asyncio.gather(*(store.put(key, b"y") for key in keys))
    assert await listed(store) == sorted(keys)


async def test_puts_and_deletes_of_long_names_do_not_meet(store: FileArtifactStore) -> None:
    async def life(key: str) -> None:
        for number in range(15):
            await store.put(key, str(number).encode())
            assert await store.get(key) == str(number).encode()
            await store.delete(key)

    long = "=" * 500
    same = [key for key in (f"{long}{number}" for number in range(9000)) if file_path(key)[0] == "3f"][:4]
    assert len(same) == 4
    assert len({file_path(key)[:-1] for key in same}) == 1
    await asyncio.gather(*map(life, same))
    assert await listed(store) == []


async def test_a_root_that_was_removed_is_made_again(store: FileArtifactStore, root: Path) -> None:
    await store.put("k", b"x")
    await asyncio.to_thread(subprocess.run, ["rm", "-rf", str(root)], check=True)
    assert await listed(store) == []
    await store.put("k", b"y")
    assert await store.get("k") == b"y"


async def test_a_relative_root_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = FileArtifactStore("blobs")
    await store.put("k", b"x")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert await store.get("k") == b"x"


async def test_a_root_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    await FileArtifactStore(tmp_path / "link").put("k", b"x")
    assert await listed(FileArtifactStore(tmp_path / "real")) == ["k"]


@pytest.mark.parametrize("root", [None, "", b"", "a\0b", 5, "\ud800"], ids=ascii)
def test_a_root_is_a_path(root: Any) -> None:
    with pytest.raises(ValidationError, match="root"):
        FileArtifactStore(root)


# -- what lasts


async def test_what_was_written_is_synced_before_and_after_it_takes_its_place(
    store: FileArtifactStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, os.replace

    def seen_sync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        calls.append("sync folder" if stat.S_ISDIR(found.st_mode) else f"sync file of {found.st_size}")
        sync(descriptor)

    def seen_replace(source: Any, target: Any) -> None:
        calls.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", seen_sync)
    monkeypatch.setattr(os, "replace", seen_replace)
    await store.put("k", b"12345")
    # What leads to the root first; at the end the blob's folder, and the root, where that is new.
    assert calls == ["sync folder"] * 2 + ["sync file of 5", "replace"] + ["sync folder"] * 2
    calls.clear()
    await store.put("k", b"123456")
    assert calls == ["sync file of 6", "replace", "sync folder"]
    calls.clear()
    await store.delete("k")
    assert calls == ["sync folder"]


WRITER = """
import asyncio, sys
from asm_runtime.stores import FileArtifactStore

async def main(root):
    store = FileArtifactStore(root)

    async def version(number):
        for _ in range(4):
            yield bytes([number % 251]) * 40_000

    number = int(sys.argv[2])
    while True:
        number += 1
        await store.put("k", version(number))
        print(number, flush=True)

asyncio.run(main(sys.argv[1]))
"""


@posix
async def test_a_put_that_is_killed_leaves_one_whole_version_and_nothing_else(
    store: FileArtifactStore, root: Path
) -> None:
    random = Random(7)
    acknowledged = 0
    for _ in range(5):
        writer = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITER, str(root), str(acknowledged), stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        for _ in range(random.randint(1, 12)):
            acknowledged = int(await writer.stdout.readline())
        for _ in range(random.randint(0, 400)):
            await asyncio.sleep(0)
        writer.kill()
        rest, _ = await writer.communicate()
        acknowledged = max([acknowledged, *map(int, rest.split())])
        blob = await store.get("k")
        assert blob == blob[:1] * 160_000
        assert blob[0] in (acknowledged % 251, (acknowledged + 1) % 251)
        assert await listed(store) == ["k"]
    assert acknowledged >= 5


@posix
async def test_what_a_killed_process_left_is_tidied_and_what_others_write_is_not(
    store: FileArtifactStore, root: Path
) -> None:
    async def begun(process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"writing\n"

    program = """
import asyncio, sys
from asm_runtime.stores import FileArtifactStore

async def main():
    async def slow():
        yield b"x" * 3_000_000
        print("writing", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

    await FileArtifactStore(sys.argv[1]).put("slow", slow())

asyncio.run(main())
"""
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, str(root), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    killed, living = processes
    await asyncio.gather(*map(begun, processes))
    assert len(os.listdir(root / "tmp")) == 2
    killed.kill()
    await killed.wait()
    (root / "tmp" / "notes.txt").write_text("of the owner")
    await store.put("k", b"x")
    assert len(os.listdir(root / "tmp")) == 2  # the living one's, and what is not ours
    assert await listed(store) == ["k"]
    await living.communicate(b"\n")
    assert living.returncode == 0
    assert await listed(store) == ["k", "slow"]
    assert os.listdir(root / "tmp") == ["notes.txt"]


async def test_without_locks_only_what_is_a_day_old_is_tidied(
    store: FileArtifactStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_lock(descriptor: int) -> None:
        """As a file system without any answers."""

    monkeypatch.setattr(folder_module, "_lock", no_lock)
    (root / "tmp").mkdir(parents=True)
    for age, name in ((0, "0"), (80_000, "1"), (90_000, "2")):
        path = root / "tmp" / f"put-{name * 32}"
        path.touch()
        changed = path.stat().st_mtime - age
        os.utime(path, (changed, changed))
    await store.put("k", b"x")
    assert sorted(os.listdir(root / "tmp")) == ["put-" + "0" * 32, "put-" + "1" * 32]


@posix
async def test_a_file_that_is_tidied_before_it_is_locked_is_made_again(
    store: FileArtifactStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, removed = folder_module._lock, 0

    def late(descriptor: int) -> bool | None:
        nonlocal removed
        if removed < 3:
            removed += 1
            (path,) = (root / "tmp").iterdir()
            path.unlink()
        return lock(descriptor)

    monkeypatch.setattr(folder_module, "_lock", late)
    await store.put("k", b"x")
    assert (removed, await store.get("k")) == (3, b"x")


# -- what others have put there


async def test_what_is_no_blob_is_left_alone(store: FileArtifactStore, root: Path) -> None:
    await store.put("k", b"x")
    shard = place_of(root, "k").parent
    (root / "README").write_text("mine")
    (root / "zz").mkdir()
    (root / "zz" / "b-a").touch()
    (shard / "b-A").touch()
    (shard / "notes.txt").touch()
    (shard / "b-moved").touch()
    (shard / "b-folder").mkdir()
    (shard / "d-folder~").mkdir()
    (shard / "d-folder~" / "x").touch()
    (shard / "b-link").symlink_to("/etc/passwd")
    before = found_under(root)
    assert await listed(store) == ["k"]
    await store.put("k", b"y")
    assert found_under(root) == before


@posix
async def test_no_link_leads_out_of_the_root(store: FileArtifactStore, root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    place = place_of(root, "k")
    place.parent.mkdir(parents=True)
    place.symlink_to(secret)
    with pytest.raises(StoreError):
        await store.get("k")
    with pytest.raises(StoreError):
        await anext(store.stream("k"))
    assert not await store.exists("k")
    await store.put("k", b"mine")
    assert (await store.get("k"), secret.read_bytes()) == (b"mine", b"secret")
    place.unlink()
    place.symlink_to(secret)
    await store.delete("k")
    assert not place.is_symlink()
    assert secret.exists()

    place.parent.rename(tmp_path / "outside")
    place.parent.symlink_to(tmp_path / "outside")
    for call in (store.put("k", b"x"), store.get("k"), store.exists("k"), store.delete("k")):
        with pytest.raises(StoreError, match="link"):
            await call
    assert await listed(store) == []
    assert list((tmp_path / "outside").iterdir()) == []


async def test_a_folder_in_the_way_is_an_error(store: FileArtifactStore, root: Path) -> None:
    place_of(root, "k").mkdir(parents=True)
    for call in (store.put("k", b"x"), store.get("k"), store.delete("k")):
        with pytest.raises(StoreError):
            await call
    assert not await store.exists("k")
    assert await listed(store) == []
    assert os.listdir(root / "tmp") == []


@posix
async def test_a_pipe_in_the_way_holds_nobody_up(store: FileArtifactStore, root: Path) -> None:
    place_of(root, "k").parent.mkdir(parents=True)
    os.mkfifo(place_of(root, "k"))
    with pytest.raises(StoreError):
        await store.get("k")
    await store.put("k", b"x")
    assert await store.get("k") == b"x"


async def test_a_root_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    store = FileArtifactStore(tmp_path / "file")
    for call in (store.put("k", b"x"), store.get("k"), store.exists("k"), store.delete("k")):
        with pytest.raises(StoreError):
            await call
    with pytest.raises(StoreError):
        await listed(store)


@pytest.mark.parametrize("change", [b"longer than it was", b""], ids=["longer", "shorter"])
async def test_a_file_that_is_written_in_place_is_noticed(
    store: FileArtifactStore, root: Path, change: bytes
) -> None:
    await store.put("k", b"0123456789")
    stream = store.stream("k", chunk_size=4)
    assert await anext(stream) == b"0123"
    place_of(root, "k").write_bytes(change)
    with pytest.raises(StoreError, match="changed"):
        [piece async for piece in stream]


# -- when the disk refuses


LIMITED = """
import asyncio, resource, sys
from asm_runtime.errors import StoreUnavailable
from asm_runtime.stores import FileArtifactStore

async def main(root):
    store = FileArtifactStore(root)
    await store.put("k", b"old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    async def much():
        for _ in range(40):
            yield b"x" * 100_000

    for data in (b"x" * 200_000, much()):
        try:
            await store.put("k", data)
        except StoreUnavailable as error:
            print(error.details["errno"])
    await store.put("small", b"fits")
    print(await store.get("k"), sorted([blob.key async for blob in store.list()]))

asyncio.run(main(sys.argv[1]))
"""


@posix
def test_a_put_without_room_leaves_what_was_there(root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(root)], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.split("\n") == ["EFBIG", "EFBIG", "b'old' ['k', 'small']", ""]
    assert os.listdir(root / "tmp") == []


FORBIDDEN = """
import asyncio, os, sys
from asm_runtime.errors import StoreUnavailable
from asm_runtime.stores import FileArtifactStore

async def main(root):
    store = FileArtifactStore(root)
    for call in (store.put("new", b"x"), store.put("k", b"x"), store.delete("k")):
        try:
            await call
        except StoreUnavailable as error:
            print(error.details["errno"])
    print(await store.get("k"), [blob.key async for blob in store.list()])

if os.getuid() == 0:
    os.setuid(65534)
asyncio.run(main(sys.argv[1]))
"""


@posix
async def test_a_folder_that_may_only_be_read_can_be_read() -> None:
    # Not in pytest's folder: each session that starts takes that away from other users.
    with TemporaryDirectory() as place:
        root = Path(place, "blobs")
        await FileArtifactStore(root).put("k", b"x")
        for path in [Path(place), root, *found_under(root)]:
            path.chmod(0o555)
        try:
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", FORBIDDEN, str(root)],
                capture_output=True,
                text=True,
                cwd="/",
            )
        finally:
            for path in [Path(place), root, *found_under(root)]:
                path.chmod(0o700)
    assert done.stderr == ""
    assert done.stdout.split("\n") == ["EACCES", "EACCES", "EACCES", "b'x' ['k']", ""]


def test_an_error_of_the_disk_says_where_and_what() -> None:
    full = translated(OSError(errno.ENOSPC, "No space left on device", "/secret/name"), "blobs")
    assert isinstance(full, StoreUnavailable)
    assert str(full) == f"artifacts in blobs: {os.strerror(errno.ENOSPC)}"
    assert full.details == {"root": "blobs", "errno": "ENOSPC"}
    way = translated(OSError(errno.EISDIR, "Is a directory"), "blobs")
    assert (type(way), way.details["errno"]) == (StoreError, "EISDIR")
    assert type(translated(OSError("odd"), "blobs")) is StoreError
    assert {errno.EACCES, errno.EROFS, errno.EIO, errno.EMFILE} <= FOR_NOW


async def test_a_sync_that_fails_leaves_what_was_there(
    store: FileArtifactStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put("k", b"old")

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken)
        with pytest.raises(StoreUnavailable):
            await store.put("k", b"new")
    assert await store.get("k") == b"old"
    assert os.listdir(root / "tmp") == []


# -- many


async def test_a_list_of_very_many_holds_few_in_memory(store: FileArtifactStore, root: Path) -> None:
    def make() -> None:
        for number in range(4_000):
            place = place_of(root, f"many/{number}")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()

    await asyncio.to_thread(make)
    tracemalloc.start()
    try:
        count = 0
        async for _ in store.list():
            count += 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 4_000
    assert peak < 800_000


async def test_disks_that_hang_hold_up_nothing_but_artifacts(
    store: FileArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put("k", b"x")
    released = asyncio.Event()
    loop = asyncio.get_running_loop()
    replace = os.replace

    def hang(source: Any, target: Any) -> None:
        asyncio.run_coroutine_threadsafe(released.wait(), loop).result()
        replace(source, target)

    monkeypatch.setattr(os, "replace", hang)
    puts = [asyncio.create_task(store.put(f"k{number}", b"x")) for number in range(40)]
    for _ in range(100):
        assert await asyncio.to_thread(sum, [1, 2]) == 3
    assert not any(put.done() for put in puts)
    released.set()
    await asyncio.gather(*puts)
    assert len(await listed(store)) == 41


@posix
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_forked_child_may_use_the_store(store: FileArtifactStore) -> None:
    await store.put("k", b"x")
    store._folder.changing.acquire()  # as if another thread were replacing a blob just then
    child = os.fork()
    if not child:
        try:
            asyncio.set_event_loop(None)
            asyncio._set_running_loop(None)
            signal.alarm(30)
            asyncio.run(store.put("k", b"of the child"))
        except BaseException:
            os._exit(1)
        os._exit(0)
    store._folder.changing.release()
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert status == 0
    assert await store.get("k") == b"of the child"


async def test_an_iterator_that_puts_too_does_not_lock(store: FileArtifactStore) -> None:
    async def nested() -> AsyncIterator[bytes]:
        await store.put("k", b"inner")
        yield await store.get("k")

    await store.put("k", nested())
    assert await store.get("k") == b"inner"
