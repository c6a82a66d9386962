"""The suite that shows whether a registry keeps the contract of `asm_runtime.ports.ArtifactRegistry`.

It needs pytest and pytest-asyncio (`asyncio_mode = "auto"`). A registry joins with a few lines::

    from asm_runtime.testing.registry_conformance import ArtifactRegistryConformance

    class TestMyRegistry(ArtifactRegistryConformance):
        def new_store(self, clock, place):
            return MyStore(place / "my.db", clock=clock)

        def new_registry(self, store):
            return MyRegistry(store)
"""

# ruff: noqa: D102  the names of the tests are their sentences

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import pytest

pytest.register_assert_rewrite("asm_runtime.testing.store_case")

from asm_runtime.clock import Clock  # noqa: E402  the asserts are rewritten first
from asm_runtime.errors import ActorStopped, ArtifactNotFound, Conflict, ValidationError  # noqa: E402
from asm_runtime.ports import ArtifactRegistry, ArtifactStats  # noqa: E402
from asm_runtime.records import Artifact  # noqa: E402
from asm_runtime.testing.clock import JumpingClock  # noqa: E402
from asm_runtime.testing.store_case import StoreUnderTest, events, session  # noqa: E402

__all__ = ["ArtifactRegistryConformance", "artifact"]

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
_numbers = count(1)


class ArtifactRegistryConformance:
    """What a registry promises. To be subclassed, see the module."""

    needs_store: ClassVar[bool] = True
    """Whether it goes through the session store, and ends with it."""

    def new_store(self, clock: Clock, place: Path) -> StoreUnderTest:
        """The session store beside whose sessions the rows lie, not started."""
        raise NotImplementedError

    def new_registry(self, store: Any) -> ArtifactRegistry:
        """A registry of its rows."""
        raise NotImplementedError

    @pytest.fixture
    def clock(self) -> JumpingClock:
        """The clock of the store."""
        return JumpingClock()

    @pytest.fixture
    async def store(self, clock: JumpingClock, tmp_path: Path) -> AsyncIterator[StoreUnderTest]:
        """A store on empty data, started."""
        async with self.new_store(clock, tmp_path) as store:
            yield store

    @pytest.fixture
    def registry(self, store: StoreUnderTest) -> ArtifactRegistry:
        """A registry without rows."""
        return self.new_registry(store)

    # -- rows

    async def test_a_row_is_found_by_its_key_as_it_was_registered(self, registry: ArtifactRegistry) -> None:
        row = artifact(
            "a/b",
            session_id="s",
            run_id="r",
            content_type="text/plain",
            metadata={"1": [1, 1.0, True, None, "é\0"], "b": {"big": 2**63 - 1}},
            created_at=NOON + timedelta(microseconds=1),
        )
        assert await registry.register(row) == row
        found = await registry.get("a/b")
        assert found == row
        assert found.to_dict() == row.to_dict()
        found.metadata["1"] = "changed"
        assert await registry.get("a/b") == row

    async def test_a_row_needs_no_session_and_keeps_its_own_copy(self, registry: ArtifactRegistry) -> None:
        metadata: dict[str, Any] = {"a": [1]}
        row = artifact("k").replace(metadata=metadata)
        stored = await registry.register(row)
        metadata["a"].append(2)
        stored.metadata["a"].append(3)
        assert (await registry.get("k")).metadata == {"a": [1]}

    async def test_a_key_that_nobody_has_is_not_found(self, registry: ArtifactRegistry) -> None:
        with pytest.raises(ArtifactNotFound):
            await registry.get("k")

    async def test_a_live_key_is_taken(self, registry: ArtifactRegistry) -> None:
        first = await registry.register(artifact("k"))
        with pytest.raises(Conflict):
            await registry.register(artifact("k"))
        assert await registry.get("k") == first
        assert len(await registry.list_artifacts(include_deleted=True)) == 1
        await registry.register(artifact("K"))

    async def test_the_same_row_again_is_returned(self, registry: ArtifactRegistry) -> None:
        row = await registry.register(artifact("k", metadata={"a": 1, "b": 2}))
        again = row.replace(metadata={"b": 2, "a": 1})
        assert await registry.register(again) == row
        assert await registry.register(row, replace=True) == row
        assert await registry.list_artifacts(include_deleted=True) == [row]

    @pytest.mark.parametrize("replace", [False, True])
    async def test_an_id_is_of_one_row(self, registry: ArtifactRegistry, replace: bool) -> None:
        row = await registry.register(artifact("k"))
        for other in (row.replace(key="other"), row.replace(byte_size=7), row.replace(metadata={"a": 1})):
            with pytest.raises(Conflict):
                await registry.register(other, replace=replace)
        await registry.delete("k")
        with pytest.raises(Conflict):
            await registry.register(row, replace=replace)
        assert await registry.list_artifacts() == []

    async def test_a_replaced_row_is_deleted_softly_in_the_same_step(
        self, registry: ArtifactRegistry, clock: JumpingClock
    ) -> None:
        old = await registry.register(artifact("k"))
        new = artifact("k")
        before = clock.now()
        assert await registry.register(new, replace=True) == new
        assert await registry.get("k") == new
        assert await registry.list_artifacts() == [new]
        rows = {row.id: row for row in await registry.list_artifacts(include_deleted=True)}
        assert rows.keys() == {old.id, new.id}
        deleted_at = rows[old.id].deleted_at
        assert deleted_at is not None
        assert deleted_at >= before
        assert rows[old.id].replace(deleted_at=None) == old
        free = artifact("free")
        assert await registry.register(free, replace=True) == free

    async def test_only_the_row_that_is_named_is_replaced(self, registry: ArtifactRegistry) -> None:
        first = await registry.register(artifact("k"))
        second = await registry.register(artifact("k"), replace=first)
        with pytest.raises(Conflict):
            await registry.register(artifact("k"), replace=first)
        assert await registry.get("k") == second
        await registry.delete("k")
        with pytest.raises(Conflict):
            await registry.register(artifact("k"), replace=second)
        with pytest.raises(ArtifactNotFound):
            await registry.get("k")

    async def test_a_deleted_key_is_free_again(self, registry: ArtifactRegistry) -> None:
        old = await registry.register(artifact("k"))
        await registry.delete("k")
        await registry.delete("k")
        await registry.delete("unknown")
        with pytest.raises(ArtifactNotFound):
            await registry.get("k")
        new = await registry.register(artifact("k"))
        assert await registry.get("k") == new
        assert {row.id for row in await registry.list_artifacts(include_deleted=True)} == {old.id, new.id}

    async def test_only_the_row_that_is_named_is_deleted(self, registry: ArtifactRegistry) -> None:
        old = await registry.register(artifact("k"))
        new = await registry.register(artifact("k"), replace=True)
        await registry.delete(old)
        assert await registry.get("k") == new
        await registry.delete(new)
        assert await registry.list_artifacts() == []

    async def test_what_cannot_be_a_row_is_refused(self, registry: ArtifactRegistry) -> None:
        row = artifact("k")
        wrong: list[Any] = [
            None,
            "k",
            row.to_dict(),
            row.replace(deleted_at=NOON),
            row.replace(key=""),
            row.replace(byte_size=-1),
            row.replace(checksum_sha256="0"),
            row.replace(metadata={"a": object()}),
        ]
        for one in wrong:
            with pytest.raises(ValidationError):
                await registry.register(one)
        for one in ("yes", 1, None, session()):
            with pytest.raises(ValidationError):
                await registry.register(row, replace=one)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        assert await registry.list_artifacts(include_deleted=True) == []

    @pytest.mark.parametrize("key", ["", None, 1, b"k", "\0", "\ud800", "x" * 1025], ids=ascii)
    async def test_what_cannot_be_a_key_is_refused(self, registry: ArtifactRegistry, key: Any) -> None:
        for call in (registry.get, registry.delete, registry.session_stats):
            with pytest.raises(ValidationError):
                await call(key)

    # -- lists

    async def test_rows_are_listed_by_time_then_id(self, registry: ArtifactRegistry) -> None:
        rows = [
            artifact(f"k{number}", id=id, created_at=NOON + timedelta(microseconds=offset))
            for number, (id, offset) in enumerate(
                [("c", 1), ("a", 1), ("b", 0), ("é", 0), ("z", 0), ("A", 2), ("d", -86_400_000_000)]
            )
        ]
        for row in rows:
            await registry.register(row)
        assert [row.id for row in await registry.list_artifacts()] == ["d", "b", "z", "é", "a", "c", "A"]

    async def test_a_list_is_filtered(self, registry: ArtifactRegistry) -> None:
        rows = [
            artifact("a", session_id="s1", run_id="r1"),
            artifact("a/1", session_id="s1", run_id="r2"),
            artifact("a/2", session_id="s2", run_id="r1"),
            artifact("A/3"),
            artifact("100%", session_id="s1"),
            artifact("100_"),
            artifact("é/1", run_id="r2"),
        ]
        for row in rows:
            await registry.register(row)

        async def keys(**filter: Any) -> list[str]:
            return [row.key for row in await registry.list_artifacts(**filter)]

        assert await keys(session_id="s1") == ["a", "a/1", "100%"]
        assert await keys(run_id="r1") == ["a", "a/2"]
        assert await keys(session_id="s1", run_id="r2") == ["a/1"]
        assert await keys(prefix="a") == ["a", "a/1", "a/2"]
        assert await keys(prefix="a/", session_id="s2") == ["a/2"]
        assert await keys(prefix="100%") == ["100%"]
        assert await keys(prefix="100") == ["100%", "100_"]
        assert await keys(prefix="é") == ["é/1"]
        assert await keys(prefix="e") == await keys(session_id="unknown") == []
        assert await keys(limit=2) == ["a", "a/1"]
        assert await keys(limit=2, session_id="s1", prefix="a") == ["a", "a/1"]
        await registry.delete("a")
        assert await keys(session_id="s1") == ["a/1", "100%"]
        assert await keys(session_id="s1", include_deleted=True) == ["a", "a/1", "100%"]

    async def test_a_list_is_read_in_pages(self, registry: ArtifactRegistry) -> None:
        rows = [artifact(f"k{number}", created_at=NOON, session_id="s") for number in range(200)]
        await asyncio.gather(*map(registry.register, rows))
        expected = sorted(rows, key=lambda row: row.id)
        assert await registry.list_artifacts() == expected
        assert await registry.list_artifacts(limit=150) == expected[:150]
        filters: list[dict[str, Any]] = [{}, {"session_id": "s"}]
        for filter in filters:
            read: list[Artifact] = []
            while page := await registry.list_artifacts(limit=7, after=read[-1] if read else None, **filter):
                read += page
                await registry.delete(page[-1])  # a cursor need not be there any more
            assert [row.id for row in read] == [
                row.id for row in expected if filter == {} or row.id in {one.id for one in read}
            ]

    @pytest.mark.parametrize(
        "wrong",
        [
            {"session_id": ""},
            {"run_id": 1},
            {"prefix": None},
            {"prefix": b""},
            {"limit": 0},
            {"limit": True},
            {"after": "a"},
            {"include_deleted": 1},
        ],
        ids=str,
    )
    async def test_a_wrong_filter_is_refused(self, registry: ArtifactRegistry, wrong: Any) -> None:
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            await registry.list_artifacts(**wrong)

    async def test_live_rows_of_a_session_are_counted(self, registry: ArtifactRegistry) -> None:
        for number, size in enumerate([0, 5, 2**62, 2**62 - 1, 2**40]):
            await registry.register(artifact(f"k{number}", session_id="s", byte_size=size))
        await registry.register(artifact("other", session_id="t", byte_size=9))
        await registry.register(artifact("none", byte_size=9))
        assert await registry.session_stats("s") == ArtifactStats(
            artifact_count=5, total_bytes=5 + 2**62 + 2**62 - 1 + 2**40
        )
        await registry.delete("k2")
        assert (await registry.session_stats("s")).total_bytes == 5 + 2**62 - 1 + 2**40
        assert await registry.session_stats("u") == ArtifactStats(artifact_count=0, total_bytes=0)

    # -- beside sessions

    async def test_rows_go_with_their_session(
        self, store: StoreUnderTest, registry: ArtifactRegistry
    ) -> None:
        await store.save_session(session("s"))
        await store.append_events(events(2, "s"))
        await registry.register(artifact("k", session_id="s"))
        await registry.register(artifact("k", session_id="s"), replace=True)
        other = await registry.register(artifact("other", session_id="t"))
        none = await registry.register(artifact("none"))
        await store.delete_session("s")
        assert await registry.list_artifacts(include_deleted=True) == [other, none]
        assert await registry.list_artifacts(session_id="s", include_deleted=True) == []
        assert await registry.session_stats("s") == ArtifactStats(artifact_count=0, total_bytes=0)
        again = await registry.register(artifact("k"))
        assert await registry.get("k") == again

    async def test_all_registries_of_a_store_have_the_same_rows(
        self, store: StoreUnderTest, registry: ArtifactRegistry
    ) -> None:
        row = await registry.register(artifact("k"))
        other = self.new_registry(store)
        assert await other.get("k") == row
        with pytest.raises(Conflict):
            await other.register(artifact("k"))
        await other.delete("k")
        assert await registry.list_artifacts() == []

    async def test_without_its_store_running_it_refuses_calls(
        self, clock: JumpingClock, tmp_path: Path
    ) -> None:
        if not self.needs_store:
            return
        store = self.new_store(clock, tmp_path)
        registry = self.new_registry(store)

        async def refused() -> None:
            for call in (
                registry.register(artifact("k")),
                registry.get("k"),
                registry.list_artifacts(),
                registry.session_stats("s"),
                registry.delete("k"),
            ):
                with pytest.raises(ActorStopped):
                    await call

        await refused()
        async with store:
            await registry.register(artifact("k"))
        await refused()

    # -- at once

    async def test_of_many_that_want_a_key_at_once_one_has_it(self, registry: ArtifactRegistry) -> None:
        rows = [artifact("k") for _ in range(20)]
        outcomes = await asyncio.gather(*map(registry.register, rows), return_exceptions=True)
        assert [type(one) for one in outcomes if isinstance(one, BaseException)] == [Conflict] * 19
        assert await registry.get("k") in outcomes
        replaced = await asyncio.gather(*(registry.register(artifact("k"), replace=True) for _ in range(20)))
        assert await registry.get("k") in replaced
        assert len(await registry.list_artifacts()) == 1
        assert len(await registry.list_artifacts(include_deleted=True)) == 21

    async def test_a_call_that_is_cancelled_is_done_or_not_begun(self, registry: ArtifactRegistry) -> None:
        for steps in range(8):
            old = await registry.register(artifact("k"), replace=True)
            new = artifact("k")
            task = asyncio.ensure_future(registry.register(new, replace=True))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            last = await registry.register(artifact("last"), replace=True)
            assert await registry.list_artifacts() in ([old, last], [new, last])

    @pytest.mark.parametrize("seed", range(3))
    async def test_random_calls_do_what_they_do_to_a_model(
        self, store: StoreUnderTest, registry: ArtifactRegistry, seed: int
    ) -> None:
        random = Random(seed)
        live: dict[str, Artifact] = {}
        deleted: dict[str, Artifact] = {}

        def drop(key: str) -> None:
            row = live.pop(key)
            deleted[row.id] = row

        for _ in range(60):
            key = random.choice(["a", "ab", "b", "c/d"])
            step = random.choice(["register"] * 3 + ["replace"] * 2 + ["again", "delete", "session", "list"])
            row = artifact(
                key,
                session_id=random.choice([None, "s", "t"]),
                byte_size=random.randint(0, 99),
                created_at=NOON + timedelta(seconds=random.randint(0, 5)),
            )
            if step == "register":
                assert await self._is_stored(registry, row) == (key not in live)
                live.setdefault(key, row)
            elif step == "replace":
                expected = random.choice([True, *live.values()])
                may = expected is True or live.get(key) == expected
                assert await self._is_stored(registry, row, replace=expected) == may
                if may:
                    if key in live:
                        drop(key)
                    live[key] = row
            elif step == "again":
                known = random.choice([row, *live.values(), *deleted.values()])
                may = known.id not in deleted and live.get(known.key, known) == known
                assert await self._is_stored(registry, known) == may
                if may:
                    live[known.key] = known
            elif step == "delete":
                await registry.delete(key)
                if key in live:
                    drop(key)
            elif step == "session":
                if random.random() < 0.3:
                    await store.delete_session("s")
                    live = {key: one for key, one in live.items() if one.session_id != "s"}
                    deleted = {id: one for id, one in deleted.items() if one.session_id != "s"}
            else:
                sizes = [one.byte_size for one in live.values() if one.session_id == "t"]
                assert await registry.session_stats("t") == ArtifactStats(
                    artifact_count=len(sizes), total_bytes=sum(sizes)
                )
                everything = [*live.values(), *deleted.values()]
                found = await registry.list_artifacts(include_deleted=True, prefix="a")
                assert [one.id for one in found] == [
                    one.id
                    for one in sorted(everything, key=lambda one: (one.created_at, one.id))
                    if one.key.startswith("a")
                ]
            assert sorted(one.id for one in await registry.list_artifacts()) == sorted(
                one.id for one in live.values()
            )

    @staticmethod
    async def _is_stored(registry: ArtifactRegistry, row: Artifact, **how: Any) -> bool:
        try:
            assert await registry.register(row, **how) == row
        except Conflict:
            return False
        return True


def artifact(key: str, **fields: Any) -> Artifact:
    """The row of some blob. Each has a later time than those before it, unless told otherwise."""
    given: dict[str, Any] = {
        "byte_size": 1,
        "checksum_sha256": "0" * 64,
        "storage_backend": "memory",
        "storage_ref": key,
        "created_at": NOON + timedelta(seconds=next(_numbers)),
    }
    return Artifact.new(key=key, **(given | fields))
