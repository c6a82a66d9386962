"""The suite that shows whether a store keeps the contract of `asm_runtime.ports.ArtifactStore`.

It needs pytest and pytest-asyncio (`asyncio_mode = "auto"`). A store joins with a few lines::

    from asm_runtime.testing.artifact_conformance import ArtifactStoreConformance

    class TestMyArtifacts(ArtifactStoreConformance):
        backend = "mine"

        def new_store(self, place):
            return MyArtifactStore(place / "blobs")

`place` is a directory of the test's own; two stores made for the same place share their blobs. A store
that cannot share them says so, and why, in `private`. One that has to be started is an asynchronous
context manager.
"""

# ruff: noqa: D102  the names of the tests are their sentences

from __future__ import annotations

import array
import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, ClassVar, cast

import pytest

from asm_runtime.errors import ArtifactNotFound, StoreError, ValidationError
from asm_runtime.ports import ArtifactStore
from asm_runtime.records import Artifact

__all__ = ["ALIKE", "NO_KEYS", "ArtifactStoreConformance"]

MIB = 1 << 20

ALIKE = [
    "a", "A", "a/b", "a//b", "/a/b", "a/b/", "/", "//", "a/", "../a", "a/../a", "./a", ".", "..", "...", "a.",
    "a..", ".a", "%2F", "%2f", "a%2Fb", "a%2fb", "%", "%%", "=2f", "a=2fb", "+", "a+b", "a b", " ", "a\\b",
    "~", "~a", "a~", "#1", "a#1", "?", "a?b", "*", "a:b", "C:", "con", "CON", "nul.txt", "b-a", "d-a~", "tmp",
    "tmp/put-0", "0a/b-a", "é", "e\u0301", "É", "ß", "SS", "\u017f", "K", "\u212a", "\u0131", "i", "I", "İ",
    "日本語", "😀", "\ufffd", "\ufffe", "\u200b", "\u2028", "\u202e", "'", '"', "<", "&", "a&amp;b", "a;b",
    "a,b", "{}", "[]", "^", "`", "|", "$HOME", "-rf", "a\u00a0b", "x" * 141, "x" * 255, "x" * 256,
    "x" * 511 + "y", "x" * 512, "X" * 512, "/" * 512, "/" * 511, "." * 512, " " * 512, "%" * 512, "é" * 256,
    "a/" * 256, "../" * 170, "日" * 170, "😀" * 128, "x" * 280 + "/y", "x" * 280 + "/z", "x" * 280,
]  # fmt: skip
"""Keys that a file system, a URL or an object store might take for one another, or for something else."""

NO_KEYS: list[Any] = [
    "", "x" * 513, "é" * 257, "😀" * 129, "a\0b", "\n", "a\tb", "a\x1fb", "a\x7fb", "a\x80b", "a\x9fb",
    "\ud800", None, b"a", 1, ["a"], Path("a"),
]  # fmt: skip


class ArtifactStoreConformance:
    """What a store of blobs promises. To be subclassed, see the module."""

    backend: ClassVar[str]
    """The `storage_backend` of its records."""

    private: ClassVar[str | None] = None
    """Why no second store can be opened on the same blobs; None: it can, and that is tested."""

    in_memory: ClassVar[bool] = False
    """Whether the blobs themselves lie in the memory of this process."""

    refs_are_keys: ClassVar[bool] = True
    """Whether the `storage_ref` of its records is the key."""

    alike: ClassVar[list[str]] = ALIKE
    """The keys that it is shown to keep apart."""

    def new_store(self, place: Path) -> ArtifactStore:
        """A store of the blobs that belong to `place`, a directory of the test's own, empty at first."""
        raise NotImplementedError

    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[ArtifactStore]:
        """A store without blobs."""
        async with AsyncExitStack() as stack:
            yield await self.opened(stack, tmp_path)

    async def opened(self, stack: AsyncExitStack, place: Path) -> ArtifactStore:
        """A store, started if it has to be."""
        store = self.new_store(place)
        if isinstance(store, AbstractAsyncContextManager):
            await stack.enter_async_context(cast("AbstractAsyncContextManager[Any]", store))
        return store

    # -- one blob

    async def test_what_was_put_is_there_and_its_record_says_what_it_is(self, store: ArtifactStore) -> None:
        metadata = {"tool": "diff", "lines": [1, 2.0]}
        before = datetime.now(UTC) - timedelta(minutes=10)
        record = await store.put(
            "notes/today.md",
            b"# Today",
            session_id="s",
            run_id="r",
            content_type="text/markdown",
            metadata=metadata,
        )
        metadata["tool"] = "changed"
        assert await store.get("notes/today.md") == b"# Today"
        assert record.id.startswith("art_")
        assert (record.key, record.session_id, record.run_id) == ("notes/today.md", "s", "r")
        assert (record.content_type, record.metadata) == (
            "text/markdown",
            {"tool": "diff", "lines": [1, 2.0]},
        )
        assert (record.byte_size, record.checksum_sha256) == (7, sha256(b"# Today").hexdigest())
        assert record.storage_backend == self.backend
        assert (record.storage_ref == "notes/today.md") == self.refs_are_keys
        assert (record.created_at.tzinfo, record.deleted_at) == (UTC, None)
        assert before < record.created_at
        assert Artifact.from_dict(record.to_dict()) == record

    async def test_every_put_has_a_record_of_its_own(self, store: ArtifactStore) -> None:
        records = [await store.put("k", b"x") for _ in range(3)]
        assert len({record.id for record in records}) == 3
        assert [record.metadata for record in records] == [{}, {}, {}]

    async def test_a_blob_may_be_empty(self, store: ArtifactStore) -> None:
        record = await store.put("k", b"")
        assert (record.byte_size, record.checksum_sha256) == (0, sha256().hexdigest())
        assert await store.get("k") == b""
        assert [piece async for piece in store.stream("k")] in ([], [b""])
        assert await store.exists("k")
        empty = await store.put("streamed", pieces())
        assert (empty.byte_size, await store.get("streamed")) == (0, b"")

    async def test_a_put_takes_the_place_of_what_was_there(self, store: ArtifactStore) -> None:
        await store.put("k", b"a long first version")
        await store.put("k", b"short")
        assert await store.get("k") == b"short"
        assert await found(store) == {"k": 5}

    @pytest.mark.parametrize(
        "data",
        [
            b"abc",
            bytearray(b"abc"),
            memoryview(b"abc"),
            memoryview(b"a-b-c")[::2],
            memoryview(b"abcdef").cast("B", (2, 3)),
            array.array("d", [1.5, 2.5]),
            bytes(range(256)) * 20_000,
        ],
        ids=["bytes", "bytearray", "memoryview", "every-second", "two-dimensions", "array", "5-MB"],
    )
    async def test_data_may_be_anything_that_has_bytes(self, store: ArtifactStore, data: Any) -> None:
        expected = memoryview(data).tobytes()
        record = await store.put("whole", data)
        assert (record.byte_size, record.checksum_sha256) == (len(expected), sha256(expected).hexdigest())
        assert await store.get("whole") == expected
        await store.put("streamed", pieces(b"<", data, data, b">"))
        assert await store.get("streamed") == b"<" + expected * 2 + b">"

    @pytest.mark.parametrize(
        "data", ["text", None, 7, [b"a"], iter([b"a"]), pytest], ids=lambda data: type(data).__name__
    )
    async def test_data_without_bytes_is_refused(self, store: ArtifactStore, data: Any) -> None:
        await store.put("k", b"old")
        with pytest.raises(ValidationError, match="data"):
            await store.put("k", data)
        with pytest.raises(ValidationError, match="data"):
            await store.put("k", pieces(b"new", data))
        assert await store.get("k") == b"old"
        assert await found(store) == {"k": 3}

    async def test_a_buffer_that_is_used_again_for_each_piece_is_put_as_it_was(
        self, store: ArtifactStore
    ) -> None:
        async def refilled() -> AsyncIterator[memoryview]:
            buffer = bytearray(1000)
            for number in range(3000):
                buffer[:] = bytes([number % 251]) * 1000
                yield memoryview(buffer)

        await store.put("k", refilled())
        assert await store.get("k") == b"".join(bytes([number % 251]) * 1000 for number in range(3000))

    async def test_a_stream_is_never_held_whole(self, store: ArtifactStore) -> None:
        async def many() -> AsyncIterator[bytes]:
            for number in range(64):
                yield bytes([number]) * MIB

        tracemalloc.start()
        try:
            record = await store.put("k", many())
            total = 0
            async for piece in store.stream("k"):
                total += len(piece)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert record.byte_size == total == 64 * MIB
        assert peak < 40 * MIB or self.in_memory

    @pytest.mark.parametrize(
        "wrong",
        [
            {"metadata": {"a": object}},
            {"metadata": [1]},
            {"metadata": {"a": float("nan")}},
            {"content_type": ""},
            {"content_type": 5},
            {"session_id": ""},
            {"run_id": "a\0"},
        ],
        ids=str,
    )
    async def test_what_cannot_be_in_a_record_is_refused_before_anything_is_read(
        self, store: ArtifactStore, wrong: dict[str, Any]
    ) -> None:
        async def untouched() -> AsyncIterator[bytes]:
            raise AssertionError("was read")
            yield b""

        with pytest.raises(ValidationError):
            await store.put("k", untouched(), **wrong)
        assert await found(store) == {}

    # -- what is not there

    async def test_what_was_never_put_is_not_found(self, store: ArtifactStore) -> None:
        with pytest.raises(ArtifactNotFound):
            await store.get("k")
        stream = store.stream("k")
        with pytest.raises(ArtifactNotFound):
            await anext(stream)
        assert not await store.exists("k")
        assert await found(store) == {}

    async def test_a_deleted_blob_is_gone_and_its_key_is_free(self, store: ArtifactStore) -> None:
        await store.put("k", b"x")
        await store.put("other", b"y")
        await store.delete("k")
        await store.delete("k")
        with pytest.raises(ArtifactNotFound):
            await store.get("k")
        assert not await store.exists("k")
        assert await found(store) == {"other": 1}
        await store.put("k", b"again")
        assert await store.get("k") == b"again"

    # -- streams

    @pytest.mark.parametrize("chunk_size", [1, 7, 1000, 262_144, MIB, 2**62])
    async def test_a_stream_is_the_blob_in_pieces_of_at_most_that_size(
        self, store: ArtifactStore, chunk_size: int
    ) -> None:
        data = Random(1).randbytes(min(3 * MIB, 1500 * chunk_size) // 2 * 2 + 1)
        await store.put("k", data)
        read = [piece async for piece in store.stream("k", chunk_size=chunk_size)]
        assert b"".join(read) == data
        assert all(type(piece) is bytes and 0 < len(piece) <= chunk_size for piece in read)

    @pytest.mark.parametrize("chunk_size", [0, -1, 1.5, "1", None, True])
    async def test_a_chunk_size_is_a_whole_number_from_one(
        self, store: ArtifactStore, chunk_size: Any
    ) -> None:
        await store.put("k", b"x")
        with pytest.raises(ValidationError, match="chunk_size"):
            await anext(store.stream("k", chunk_size=chunk_size))

    @pytest.mark.parametrize("change", ["replaced", "deleted"])
    async def test_a_stream_is_one_version_or_an_error(self, store: ArtifactStore, change: str) -> None:
        old = b"a" * (8 * MIB)
        await store.put("k", old)
        stream = store.stream("k")
        read = [await anext(stream)]
        if change == "replaced":
            await store.put("k", b"b" * (8 * MIB))
        else:
            await store.delete("k")
        try:
            read += [piece async for piece in stream]
        except (StoreError, ArtifactNotFound):
            pass
        else:
            assert b"".join(read) == old

    async def test_a_stream_may_be_left_at_any_piece(self, store: ArtifactStore) -> None:
        await store.put("k", b"a" * MIB)
        for taken in range(4):
            async with aclosing(cast("Any", store.stream("k"))) as stream:
                for _ in range(taken):
                    await anext(stream)
        await store.delete("k")
        assert not await store.exists("k")

    # -- all or nothing

    async def test_an_iterator_that_fails_leaves_what_was_there(self, store: ArtifactStore) -> None:
        class Broken(Exception):
            pass

        async def broken(count: int) -> AsyncIterator[bytes]:
            for _ in range(count):
                yield b"x" * MIB
            raise Broken

        await store.put("k", b"old")
        for count in (0, 1, 12):
            for key in ("k", "new"):
                with pytest.raises(Broken):
                    await store.put(key, broken(count))
        assert await store.get("k") == b"old"
        assert await found(store) == {"k": 3}

    @pytest.mark.parametrize("size", [0, 1000, 12 * MIB])
    async def test_a_put_that_is_cancelled_leaves_what_was_there(
        self, store: ArtifactStore, size: int
    ) -> None:
        waiting = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            yield b"x" * size
            waiting.set()
            await asyncio.Event().wait()

        await store.put("k", b"old")
        for key in ("k", "new"):
            waiting.clear()
            put = asyncio.create_task(store.put(key, endless()))
            await waiting.wait()
            assert await found(store) == {"k": 3}
            put.cancel()
            with pytest.raises(asyncio.CancelledError):
                await put
            assert await store.get("k") == b"old"
            assert await found(store) == {"k": 3}

    async def test_whenever_a_put_is_cancelled_the_next_one_counts(self, store: ArtifactStore) -> None:
        await store.put("k", b"0" * 1000)
        for steps in range(60):
            new = str(steps % 10).encode() * 1000
            put = asyncio.create_task(store.put("k", new))
            await turns(steps)
            put.cancel()
            await asyncio.wait([put])
            assert len(set(await store.get("k"))) == 1
            await store.put("k", b"z" * (steps + 1))
            assert await store.get("k") == b"z" * (steps + 1)
        assert await found(store) == {"k": 60}

    async def test_whenever_a_delete_is_cancelled_the_next_put_counts(self, store: ArtifactStore) -> None:
        for steps in range(30):
            await store.put("k", b"old")
            delete = asyncio.create_task(store.delete("k"))
            await turns(steps)
            delete.cancel()
            await asyncio.wait([delete])
            await store.put("k", b"new")
            assert await store.get("k") == b"new"

    async def test_whenever_a_reader_is_cancelled_nothing_is_lost(self, store: ArtifactStore) -> None:
        await store.put("k", b"x" * 100_000)

        async def stream() -> None:
            async for _ in store.stream("k", chunk_size=10_000):
                pass

        async def listed() -> None:
            assert await found(store) == {"k": 100_000}

        for reader in (lambda: store.get("k"), stream, listed, lambda: store.exists("k")):
            for steps in range(20):
                task = asyncio.ensure_future(cast("Callable[[], Any]", reader)())
                await turns(steps)
                task.cancel()
                await asyncio.wait([task])
        assert await store.get("k") == b"x" * 100_000

    async def test_whoever_reads_while_others_put_gets_one_version(self, store: ArtifactStore) -> None:
        sizes = [1, 70_000, 600_000]

        def version(number: int) -> bytes:
            return bytes([number]) * sizes[number % 3]

        await store.put("k", version(0))
        done = asyncio.Event()

        async def write() -> None:
            for number in range(1, 25):
                data = version(number)
                await store.put("k", pieces(data[:1], data[1:]) if number % 2 else data)
            done.set()

        async def read() -> None:
            while not done.is_set():
                whole = await store.get("k")
                try:
                    streamed = b"".join([piece async for piece in store.stream("k", chunk_size=50_000)])
                except StoreError:
                    streamed = whole
                for blob in (whole, streamed):
                    assert blob == version(blob[0])
                assert await store.exists("k")
                assert list(await found(store)) == ["k"]

        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            for _ in range(3):
                group.create_task(read())
        assert await store.get("k") == version(24)

    async def test_of_many_puts_at_once_one_is_the_last(self, store: ArtifactStore) -> None:
        records = await asyncio.gather(*(store.put("k", bytes([number]) * 5000) for number in range(20)))
        blob = await store.get("k")
        assert sha256(blob).hexdigest() in {record.checksum_sha256 for record in records}
        assert await found(store) == {"k": 5000}

    # -- keys

    @pytest.mark.parametrize("key", NO_KEYS, ids=ascii)
    async def test_what_can_be_no_key_is_refused(self, store: ArtifactStore, key: Any) -> None:
        async def iterate(iterator: AsyncIterator[Any]) -> None:
            async for _ in iterator:
                pass

        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: store.put(key, b"x"),
            lambda: store.get(key),
            lambda: iterate(store.stream(key)),
            lambda: store.exists(key),
            lambda: store.delete(key),
        ]
        for call in calls:
            with pytest.raises(ValidationError, match="key"):
                await call()
        assert await found(store) == {}

    async def test_keys_that_look_alike_are_different_blobs(self, store: ArtifactStore) -> None:
        for number, key in enumerate(self.alike):
            assert not await store.exists(key), key
            record = await store.put(key, f"{number} {key}".encode())
            assert record.key == key
        for number, key in enumerate(self.alike):
            assert await store.get(key) == f"{number} {key}".encode(), key
        assert set(await found(store)) == set(self.alike)
        for number, key in enumerate(self.alike):
            await store.delete(key)
            assert not await store.exists(key), key
            assert await store.exists(self.alike[-1]) == (number < len(self.alike) - 1)
        assert await found(store) == {}

    async def test_a_list_has_the_keys_that_begin_so(self, store: ArtifactStore) -> None:
        kept = ["a", "A", "ab", "a/b", "a/bc", "a//b", "a/b/c", "b", "%61", "é", "éa", "x" * 300, "x" * 301]
        for key in kept:
            await store.put(key, key.encode())
        for prefix in [
            "",
            "a",
            "A",
            "a/",
            "a/b",
            "a//",
            "a/b/",
            "b",
            "%6",
            "é",
            "e",
            "x" * 299,
            "x" * 301,
            "x" * 512,
        ]:
            assert await found(store, prefix) == {
                key: len(key.encode()) for key in kept if key.startswith(prefix)
            }, prefix

    @pytest.mark.parametrize("prefix", [None, 1, b"a", "a\0", "\ud800"], ids=ascii)
    async def test_a_prefix_is_a_text(self, store: ArtifactStore, prefix: Any) -> None:
        with pytest.raises(ValidationError, match="prefix"):
            await anext(store.list(prefix))

    async def test_a_list_says_size_and_time(self, store: ArtifactStore) -> None:
        earlier = datetime.now(UTC) - timedelta(minutes=10)
        await store.put("k", b"12345")
        (blob,) = [blob async for blob in store.list()]
        assert (blob.key, blob.byte_size, blob.modified_at.tzinfo) == ("k", 5, UTC)
        assert earlier < blob.modified_at < datetime.now(UTC) + timedelta(minutes=10)

    async def test_a_list_of_many_is_whole_and_may_be_left(self, store: ArtifactStore) -> None:
        kept = {f"many/{number}": 1 for number in range(150)}
        for key in kept:
            await store.put(key, b"x")
        assert await found(store) == kept
        async with aclosing(cast("Any", store.list("many/"))) as blobs:
            assert (await anext(blobs)).key in kept
        async for blob in store.list():
            await store.delete(blob.key)
        assert await found(store) == {}

    # -- random lives

    @pytest.mark.parametrize("seed", range(5))
    async def test_random_calls_do_what_they_do_to_a_dictionary(
        self, store: ArtifactStore, seed: int
    ) -> None:
        random = Random(seed)
        known = random.sample(self.alike, 8)
        model: dict[str, bytes] = {}
        for _ in range(60):
            key = random.choice(known)
            step = random.choice(["put", "put", "stream in", "get", "stream", "exists", "delete", "list"])
            data = random.randbytes(random.choice([0, 1, 100, 70_000]))
            if step == "put":
                assert (await store.put(key, data)).byte_size == len(data)
                model[key] = data
            elif step == "stream in":
                cut = random.randint(0, len(data))
                await store.put(key, pieces(data[:cut], data[cut:]))
                model[key] = data
            elif step == "delete":
                await store.delete(key)
                model.pop(key, None)
            elif step == "exists":
                assert await store.exists(key) == (key in model)
            elif step == "list":
                prefix = key[: random.randint(0, len(key))]
                assert await found(store, prefix) == {
                    one: len(blob) for one, blob in model.items() if one.startswith(prefix)
                }
            elif key not in model:
                with pytest.raises(ArtifactNotFound):
                    await store.get(key)
            elif step == "get":
                assert await store.get(key) == model[key]
            else:
                size = random.choice([1, 1000, 10**6]) if len(model[key]) < 1000 else 10_000
                assert b"".join([piece async for piece in store.stream(key, chunk_size=size)]) == model[key]

    # -- several stores

    async def test_two_stores_of_one_place_share_their_blobs(
        self, tmp_path: Path, record_property: Callable[[str, object], None]
    ) -> None:
        record_property("private", self.private or "no")
        async with AsyncExitStack() as stack:
            one, other = await self.opened(stack, tmp_path), await self.opened(stack, tmp_path)
            await one.put("k", b"x")
            assert await other.exists("k") == (self.private is None)
            if self.private is None:
                await other.put("k", b"yy")
                assert await one.get("k") == b"yy"
                assert await found(one) == {"k": 2}
                await one.delete("k")
                assert not await other.exists("k")


async def pieces(*data: Any) -> AsyncIterator[Any]:
    """An asynchronous iterator of these."""
    for piece in data:
        yield piece


async def found(store: ArtifactStore, prefix: str = "") -> dict[str, int]:
    """What a list shows, each key once: its size."""
    blobs = [(blob.key, blob.byte_size) async for blob in store.list(prefix)]
    sizes = dict(blobs)
    assert len(sizes) == len(blobs), blobs
    return sizes


async def turns(count: int) -> None:
    """Give others this many turns of the loop, and threads the time of some of them."""
    for _ in range(count):
        await asyncio.sleep(0)
    if count > 10:
        await asyncio.get_running_loop().run_in_executor(None, sum, range(count * 1000))
