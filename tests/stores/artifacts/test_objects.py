"""Blobs in object stores: what a service adds to the suite that all stores pass."""

from __future__ import annotations

import asyncio
import builtins
import os
import subprocess
import sys
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from asm_runtime.errors import (
    ArtifactNotFound,
    DependencyMissing,
    StoreError,
    StoreUnavailable,
    ValidationError,
)
from asm_runtime.stores import FileArtifactStore, ObjectArtifactStore
from asm_runtime.stores.artifacts.object_errors import MEANINGS, translated
from asm_runtime.stores.artifacts.pipe import Pipe
from asm_runtime.testing.artifact_conformance import found, pieces
from tests.s3 import KEY, SECRET, S3Server, imported, s3_server

MIB = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        server.make_bucket("bucket")
        yield server


@pytest.fixture
def client(server: S3Server, tmp_path: Path) -> Any:
    return server.client("bucket", prefix=tmp_path.name)


@pytest.fixture
def store(client: Any) -> ObjectArtifactStore:
    return ObjectArtifactStore(client)


# -- which store it is


async def test_a_url_means_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported("obstore")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    memory = ObjectArtifactStore("memory://")
    assert (await memory.put("k", b"x")).storage_backend == "memory"
    files = ObjectArtifactStore(f"file://{tmp_path}/a%20b")
    assert (await files.put("k", b"x")).storage_backend == "file"
    assert await FileArtifactStore(tmp_path / "a b").get("k") == b"x"
    assert repr(ObjectArtifactStore("s3://bucket/blobs")) == "<ObjectArtifactStore s3://bucket/blobs>"
    assert "gs://bucket" in repr(ObjectArtifactStore("gs://bucket"))


async def test_a_store_of_the_library_is_taken_as_it_is(tmp_path: Path) -> None:
    stores = imported("obstore.store")
    local = ObjectArtifactStore(stores.LocalStore(tmp_path))
    await local.put("k", b"x")
    assert await FileArtifactStore(tmp_path).get("k") == b"x"
    with pytest.raises(ValidationError):
        ObjectArtifactStore(stores.LocalStore())
    one = stores.MemoryStore()
    await ObjectArtifactStore(one).put("k", b"x")
    assert await ObjectArtifactStore(one).get("k") == b"x"


@pytest.mark.parametrize(
    "wrong",
    [
        "", "bucket", "ftp://user:hidden@host/x", "s3://", "file://", "file:///", "file://host/x",
        "file:relative", "az://container?sig=hidden", "http://[hidden/x", "https://user:hidden@example.org/x",
        None, 5, object(),
    ],
    ids=lambda wrong: str(wrong)[:12],
)  # fmt: skip
def test_what_names_no_store_is_refused_without_being_shown(wrong: Any) -> None:
    imported("obstore")
    with pytest.raises(ValidationError, match="url_or_obstore") as refused:
        ObjectArtifactStore(wrong)
    assert "hidden" not in "".join(traceback.format_exception(refused.value))


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(DependencyMissing, match=r"asm-runtime\[objects\]"):
        ObjectArtifactStore("memory://")


# -- in a service


async def test_objects_are_named_like_their_keys(store: ObjectArtifactStore, client: Any) -> None:
    obstore = imported("obstore")
    await store.put("runs/run_1/patch.diff", b"x")
    assert await obstore.head_async(client, "runs/run_1/patch.diff")


async def test_what_others_put_is_left_alone(store: ObjectArtifactStore, client: Any) -> None:
    obstore = imported("obstore")
    for name in ("a b", "=zz", "x."):
        await obstore.put_async(client, name, b"others")
    await store.put("k", b"x")
    assert await found(store) == {"k": 1}
    await obstore.put_async(client, "plain/name", b"others")
    assert await store.get("plain/name") == b"others"


async def test_a_list_by_a_folder_asks_for_no_other(
    store: ObjectArtifactStore, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    obstore = imported("obstore")
    asked: list[Any] = []
    listing = obstore.list

    def seen(client: Any, prefix: Any, **options: Any) -> Any:
        asked.append(prefix)
        return listing(client, prefix, **options)

    monkeypatch.setattr(obstore, "list", seen)
    long = "runs/" + "%" * 500
    for key in ("runs/1/a", "runs/10/a", "runs/1/b", "other", long):
        await store.put(key, b"x")
    assert set(await found(store, "runs/1/")) == {"runs/1/a", "runs/1/b"}
    assert set(await found(store, "runs/1")) == {"runs/1/a", "runs/10/a", "runs/1/b"}
    assert set(await found(store, "runs/%")) == {long}
    assert asked == ["runs/1", "=long", "runs", "=long", "runs", "=long"]


def uploads_under_way(server: S3Server) -> int:
    return server.get("bucket?uploads").count("<UploadId>")


async def test_the_parts_of_a_put_that_fails_are_removed(
    store: ObjectArtifactStore, server: S3Server
) -> None:
    async def broken() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * MIB
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await store.put("k", broken())
    assert await asyncio.to_thread(uploads_under_way, server) == 0
    assert await found(store) == {}


async def test_the_parts_of_a_put_that_is_cancelled_are_removed(
    store: ObjectArtifactStore, server: S3Server
) -> None:
    waiting = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * MIB
        waiting.set()
        await asyncio.Event().wait()

    put = asyncio.create_task(store.put("k", endless()))
    await waiting.wait()
    put.cancel()
    with pytest.raises(asyncio.CancelledError):
        await put
    await store.put("k", b"new")  # waits until the other one is settled
    assert await store.get("k") == b"new"
    assert await asyncio.to_thread(uploads_under_way, server) == 0


async def test_a_write_whose_caller_is_gone_is_not_overtaken(
    store: ObjectArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    obstore = imported("obstore")
    put, order = obstore.put_async, list[bytes]()
    slow = asyncio.Event()

    async def late(client: Any, name: str, data: bytes, **options: Any) -> Any:
        if data == b"first":
            await slow.wait()
        order.append(data)
        return await put(client, name, data, **options)

    monkeypatch.setattr(obstore, "put_async", late)
    first = asyncio.create_task(store.put("k", b"first"))
    for _ in range(10):
        await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    second = asyncio.create_task(store.put("k", b"second"))
    await store.put("other", b"free")
    slow.set()
    await second
    assert order == [b"free", b"first", b"second"]
    assert await store.get("k") == b"second"


# -- when it fails


async def test_a_missing_bucket_is_no_missing_artifact(server: S3Server) -> None:
    store = ObjectArtifactStore(server.client("nowhere"))
    for call in (store.put("k", b"x"), store.get("k"), store.delete("k"), found(store)):
        with pytest.raises(StoreError):
            await call


async def test_a_service_out_of_reach_is_unavailable_and_tells_no_secret(server: S3Server) -> None:
    stores = imported("obstore.store")
    gone = stores.S3Store(
        "bucket",
        endpoint="http://127.0.0.1:9",
        access_key_id=KEY,
        secret_access_key=SECRET,
        session_token="a-secret-token",
        region="us-east-1",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    store = ObjectArtifactStore(gone)
    large = pieces(*[b"x" * MIB] * 15)
    for call in (
        store.put("k", b"x"),
        store.put("k", large),
        store.get("k"),
        anext(store.stream("k")),
        store.exists("k"),
        store.delete("k"),
        found(store),
    ):
        with pytest.raises(StoreUnavailable) as failed:
            await call
        shown = "".join(traceback.format_exception(failed.value)) + repr(failed.value.to_dict())
        for secret in (KEY, SECRET, "a-secret-token", "127.0.0.1"):
            assert secret not in shown


async def test_a_put_that_the_service_refuses_stops_reading(server: S3Server) -> None:
    store = ObjectArtifactStore(server.client("nowhere"))
    read = 0

    async def much() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(500):
            read += 1
            yield b"x" * MIB

    with pytest.raises(StoreError):
        await store.put("k", much())
    assert read < 100


def test_every_error_of_the_library_has_a_meaning() -> None:
    exceptions = imported("obstore.exceptions")
    for name in dir(exceptions):
        kind: Any = getattr(exceptions, name)
        if isinstance(kind, builtins.type) and issubclass(kind, Exception) and kind.__module__ != "builtins":
            assert name in MEANINGS, name
            assert type(translated(kind("x"), "s3://b")) is MEANINGS[name][0]


def test_an_error_says_what_was_answered_and_nothing_else() -> None:
    class GenericError(Exception):
        pass

    text = (
        "Generic S3 error: Error performing GET https://b.s3.amazonaws.com/k?X-Amz-Signature=hidden - Server "
        "returned non-2xx status code: {}: <Error><Code>{}</Code><AWSAccessKeyId>hidden</AWSAccessKeyId>"
    )
    busy = translated(GenericError(text.format("503 Service Unavailable", "SlowDown")), "s3://b")
    assert isinstance(busy, StoreUnavailable)
    assert str(busy) == "artifacts in s3://b: the service is out of reach, or failed (503, SlowDown)"
    assert busy.details == {"store": "s3://b", "error": "GenericError", "answer": ["503", "SlowDown"]}
    wrong = translated(GenericError(text.format("400 Bad Request", "InvalidArgument")), "s3://b")
    assert type(wrong) is StoreError
    assert type(translated(KeyError("hidden"), "s3://b")) is StoreError
    assert "hidden" not in str(translated(KeyError("hidden"), "s3://b"))


async def test_an_object_that_is_read_in_part_is_an_error(
    store: ObjectArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    obstore = imported("obstore")
    await store.put("k", b"0123456789")

    class Short:
        meta = {"size": 10}

        async def bytes_async(self) -> bytes:
            return b"012"

        def stream(self, min_chunk_size: int) -> Any:
            return pieces(b"012")

    async def short(*args: Any) -> Short:
        return Short()

    monkeypatch.setattr(obstore, "get_async", short)
    with pytest.raises(StoreError, match="part"):
        await store.get("k")
    with pytest.raises(StoreError, match="part"):
        [piece async for piece in store.stream("k")]


async def test_what_is_not_there_is_not_found(store: ObjectArtifactStore) -> None:
    with pytest.raises(ArtifactNotFound) as missing:
        await store.get("k")
    assert missing.value.__cause__ is None
    assert missing.value.details == {"key": "k"}


FORKED = """
import asyncio, os, signal
from asm_runtime.errors import StoreError
from asm_runtime.stores import ObjectArtifactStore

store = ObjectArtifactStore("memory://")
if not os.fork():
    signal.alarm(30)
    asyncio.run(store.put("k", b"of a child that was forked before the first use"))
    os._exit(0)
asyncio.run(store.put("k", b"x"))
if not os.fork():
    signal.alarm(30)
    for call in (store.get("k"), store.put("k", b"y"), ObjectArtifactStore("memory://").put("k", b"z")):
        try:
            asyncio.run(call)
        except StoreError as error:
            assert "forked" in str(error)
        else:
            os._exit(1)
    os._exit(0)
print([os.waitpid(-1, 0)[1] for _ in range(2)])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_is_told_that_it_cannot_use_the_client() -> None:
    imported("obstore")
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True)
    assert done.stdout == "[0, 0]\n", done.stderr


# -- the pipe


async def test_a_pipe_holds_one_item() -> None:
    pipe: Pipe[int] = Pipe()
    assert await pipe.give(1)
    second = asyncio.create_task(pipe.give(2))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not second.done()
    assert await anext(pipe) == 1
    assert await second
    pipe.end()
    assert [item async for item in pipe] == [2]


async def test_who_gives_learns_that_nobody_takes() -> None:
    pipe: Pipe[int] = Pipe()
    await pipe.give(1)
    waiting = asyncio.create_task(pipe.give(2))
    await asyncio.sleep(0)
    pipe.leave()
    assert not await waiting
    assert not await pipe.give(3)


async def test_who_takes_learns_of_a_failure_before_what_was_given() -> None:
    pipe: Pipe[int] = Pipe()
    waiting = asyncio.ensure_future(anext(pipe))
    await asyncio.sleep(0)
    pipe.fail(KeyError("x"))
    with pytest.raises(KeyError):
        await waiting
    await pipe.give(1)
    with pytest.raises(KeyError):
        await anext(pipe)
