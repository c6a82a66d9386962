"""The suite of stores whose data several may open at once: what two nodes promise each other."""

# ruff: noqa: D102  the names of the tests are their sentences

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asm_runtime.errors import Conflict, LeaseLost, QueueFull, RunNotFound
from asm_runtime.ports import ExecutionResult
from asm_runtime.records import Event, Run
from asm_runtime.testing.clock import JumpingClock
from asm_runtime.testing.store_case import (
    HOUR_MS,
    StoreCase,
    StoreUnderTest,
    events,
    ids,
    numbers,
    run,
    session,
)

__all__ = ["SharedDataConformance"]


class SharedDataConformance(StoreCase):
    """Two stores on the same data. To be mixed with `SessionStoreConformance`."""

    @pytest.fixture
    async def second(
        self, store: StoreUnderTest, clock: JumpingClock, tmp_path: Path
    ) -> AsyncIterator[StoreUnderTest]:
        """Another node on the data of `store`."""
        async with self.new_store(clock, tmp_path) as second:
            yield second

    async def test_what_was_stored_is_there_for_the_next_opening(
        self, clock: JumpingClock, tmp_path: Path
    ) -> None:
        async with self.new_store(clock, tmp_path) as store:
            await store.flush(ExecutionResult(session(), run(), events(3)))
            revision = await store.wait_for_runs("s", timeout_ms=0)
            kept = (await store.get_session("s"), await store.list_runs("s"), await store.get_events("s"))
        async with self.new_store(clock, tmp_path) as again:
            assert (
                await again.get_session("s"),
                await again.list_runs("s"),
                await again.get_events("s"),
            ) == kept
            assert await again.wait_for_runs("s", timeout_ms=0) == revision
            assert numbers(await again.append_events(events(1))) == [4]

    async def test_each_sees_at_once_what_the_other_has_acknowledged(
        self, store: StoreUnderTest, second: StoreUnderTest
    ) -> None:
        for index in range(10):
            one, other = (store, second) if index % 2 else (second, store)
            stored = await one.append_event_with_sequence(events(1)[0])
            assert await other.get_events("s", after=index) == [stored]
            await one.save_session(session(metadata={"index": index}))
            assert (await other.get_session("s")).metadata == {"index": index}
            await one.enqueue_run(run(str(index)))
            assert (await other.get_run(str(index))).id == str(index)
        assert ids(await store.list_runs("s")) == ids(await second.list_runs("s")) == list("0123456789")

    async def test_numbers_have_no_gap_whoever_appends(
        self, store: StoreUnderTest, second: StoreUnderTest
    ) -> None:
        async def writer(index: int) -> list[Event]:
            mine: list[Event] = []
            for _ in range(10):
                mine += await (store, second)[index % 2].append_events(events(2, run_id=str(index)))
            return mine

        written = await asyncio.gather(*map(writer, range(8)))
        found = await store.get_events("s")
        assert numbers(found) == list(range(1, 161))
        for index, mine in enumerate(written):
            assert [event for event in found if event.run_id == str(index)] == mine

    async def test_the_same_event_appended_by_both_is_stored_once(
        self, store: StoreUnderTest, second: StoreUnderTest
    ) -> None:
        batch = events(20)
        first, again = await asyncio.gather(
            asyncio.gather(*(store.append_event_with_sequence(event) for event in batch)),
            asyncio.gather(*(second.append_event_with_sequence(event) for event in batch)),
        )
        assert first == again
        assert sorted(numbers(await store.get_events("s"))) == list(range(1, 21))  # type: ignore[type-var]

    async def test_of_two_nodes_that_expect_the_same_status_one_wins(
        self, store: StoreUnderTest, second: StoreUnderTest
    ) -> None:
        for index in range(10):
            await store.save_session(session(str(index)))
            outcomes = await asyncio.gather(
                store.save_session(session(str(index), status="failed"), expected_status="active"),
                second.save_session(session(str(index), status="completed"), expected_status="active"),
                return_exceptions=True,
            )
            assert sum(outcome is None for outcome in outcomes) == 1
            assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 1

    # -- the queue

    async def test_two_nodes_never_claim_the_same_run_nor_exceed_the_slots(
        self, store: StoreUnderTest, second: StoreUnderTest
    ) -> None:
        for index in range(20):
            await store.enqueue_run(run(f"{index:02}"))
        got = await asyncio.gather(
            *((store, second)[index % 2].claim_run("s", max_concurrent_runs=8) for index in range(30))
        )
        running = [one for one in got if one is not None]
        assert sorted(ids(running)) == [f"{index:02}" for index in range(8)]
        assert len({one.owner for one in running}) <= 2
        assert await second.claim_run("s", max_concurrent_runs=8) is None

    async def test_the_room_of_a_queue_is_shared(self, store: StoreUnderTest, second: StoreUnderTest) -> None:
        outcomes = await asyncio.gather(
            *(
                (store, second)[index % 2].enqueue_run(run(str(index)), max_open_runs=5)
                for index in range(14)
            ),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, Run) for outcome in outcomes) == 5
        assert sum(isinstance(outcome, QueueFull) for outcome in outcomes) == 9

    async def test_a_run_accepted_by_one_is_claimed_in_order_by_the_other(
        self, store: StoreUnderTest, second: StoreUnderTest
    ) -> None:
        for index in range(6):
            await (store, second)[index % 2].enqueue_run(run(str(index)))
        got = [await (second, store)[index % 2].claim_run("s") for index in range(6)]
        assert [one and one.id for one in got] == list("012345")

    async def test_a_run_that_another_living_node_executes_is_no_orphan(
        self, store: StoreUnderTest, second: StoreUnderTest
    ) -> None:
        await store.enqueue_run(run())
        claimed = await store.claim_run("s")
        assert await second.list_orphaned_runs() == []
        assert await second.get_active_run("s") == claimed
        assert await second.claim_run("s") is None

    async def test_a_released_run_is_an_orphan_for_all(
        self, store: StoreUnderTest, second: StoreUnderTest
    ) -> None:
        await store.enqueue_run(run())
        claimed = await store.claim_run("s")
        assert claimed is not None
        await store.release_run(claimed.fence)
        assert ids(await second.list_orphaned_runs(session_id="s")) == ["r"]

    async def test_the_runs_of_a_stopped_store_are_orphans_at_once(
        self, store: StoreUnderTest, second: StoreUnderTest
    ) -> None:
        for id in ("mine", "others"):
            await store.enqueue_run(run(id))
        await store.claim_run("s")
        kept = await second.claim_run("s")
        await store.stop()
        assert ids(await second.list_orphaned_runs()) == ["mine"]
        assert await second.get_run("others") == kept

    async def test_an_attempt_that_another_node_took_over_can_write_nothing(
        self, store: StoreUnderTest, second: StoreUnderTest
    ) -> None:
        await store.enqueue_run(run())
        first = await store.claim_run("s")
        assert first is not None
        await store.release_run(first.fence)
        (orphan,) = await second.list_orphaned_runs()
        await second.flush(ExecutionResult(run=orphan.with_status("pending")), fence=orphan.fence)
        taken = await second.claim_run("s")
        assert taken is not None
        assert (taken.attempt, taken.owner != first.owner) == (2, True)
        with pytest.raises(LeaseLost):
            await store.append_events(events(1), fence=first.fence)
        with pytest.raises(LeaseLost):
            await store.flush(ExecutionResult(run=first.with_status("completed")), fence=first.fence)
        await store.release_run(first.fence)
        assert await second.get_run("r") == taken
        assert numbers(await second.append_events(events(1), fence=taken.fence)) == [1]

    async def test_an_orphan_is_settled_by_one_node(
        self, store: StoreUnderTest, second: StoreUnderTest
    ) -> None:
        await store.save_run(run(status="running"))
        (orphan,) = await second.list_orphaned_runs()
        outcomes = await asyncio.gather(
            *(
                node.flush(
                    ExecutionResult(run=orphan.with_status("failed"), events=events(1)), fence=orphan.fence
                )
                for node in (store, second)
            ),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, list) for outcome in outcomes) == 1
        assert sum(isinstance(outcome, LeaseLost) for outcome in outcomes) == 1
        assert await store.get_latest_sequence("s") == 1

    async def test_a_session_deleted_by_another_node_is_gone(
        self, store: StoreUnderTest, second: StoreUnderTest
    ) -> None:
        await store.enqueue_run(run())
        await store.append_events(events(2))
        claimed = await store.claim_run("s")
        assert claimed is not None
        await second.delete_session("s")
        with pytest.raises(LeaseLost):
            await store.append_events(events(1), fence=claimed.fence)
        with pytest.raises(RunNotFound):
            await store.get_run("r")
        assert numbers(await store.append_events(events(1))) == [1]

    # -- waiting

    async def test_an_append_by_another_node_wakes_who_waits_for_it(
        self, store: StoreUnderTest, second: StoreUnderTest, clock: JumpingClock
    ) -> None:
        await store.append_events(events(1))
        parked = await self.begun(
            clock,
            asyncio.create_task(store.get_events("s", after=1, run_id="r", wait_timeout_ms=HOUR_MS)),
        )
        await second.append_events(events(1, "other", run_id="r"))
        await second.append_events(events(2))
        await store.append_events(events(1))
        stored = await second.append_events(events(2, run_id="r"))
        assert await self.ended(clock, parked) == stored
        assert numbers(stored) == [5, 6]
        assert clock.monotonic() < HOUR_MS / 1000

    async def test_a_change_by_another_node_that_brings_nothing_does_not_end_the_waiting(
        self, store: StoreUnderTest, second: StoreUnderTest, clock: JumpingClock
    ) -> None:
        parked = await self.begun(
            clock, asyncio.create_task(store.get_events("s", run_id="r", wait_timeout_ms=HOUR_MS))
        )
        await second.enqueue_run(run("r"))
        for _ in range(20):  # it looks, and finds nothing for the one who is parked
            await clock.advance_ms(50)
            await store.get_latest_sequence("s")
        stored = await second.append_events(events(1, run_id="r"))
        assert await self.ended(clock, parked) == stored
        assert clock.monotonic() < HOUR_MS / 1000

    async def test_readers_see_what_all_nodes_append_once_in_order(
        self, store: StoreUnderTest, second: StoreUnderTest, clock: JumpingClock
    ) -> None:
        async def follow(node: StoreUnderTest) -> list[int | None]:
            seen: list[int | None] = []
            while len(seen) < 120:
                after = seen[-1] if seen else None
                seen += numbers(await node.get_events("s", after=after, wait_timeout_ms=HOUR_MS))
            return seen

        async def write(node: StoreUnderTest) -> None:
            for _ in range(30):
                await node.append_events(events(2))

        readers = [asyncio.create_task(follow(node)) for node in (store, second)]
        await asyncio.gather(write(store), write(second))
        for reader in readers:
            assert await self.ended(clock, reader) == list(range(1, 121))

    async def test_a_change_of_runs_by_another_node_wakes_who_waits_for_it(
        self, store: StoreUnderTest, second: StoreUnderTest, clock: JumpingClock
    ) -> None:
        await store.save_session(session())
        revision = await store.wait_for_runs("s", timeout_ms=0)
        for change in (
            second.enqueue_run(run()),
            second.claim_run("s"),
            second.save_session(session(status="paused")),
        ):
            parked = await self.begun(
                clock, asyncio.create_task(store.wait_for_runs("s", after=revision, timeout_ms=HOUR_MS))
            )
            await change
            woken = await self.ended(clock, parked)
            assert woken > revision
            revision = woken
        assert clock.monotonic() < HOUR_MS / 1000

    async def test_the_revision_is_the_same_for_all(
        self, store: StoreUnderTest, second: StoreUnderTest
    ) -> None:
        for index in range(4):
            before = await second.wait_for_runs("s", timeout_ms=0)
            await (store, second)[index % 2].enqueue_run(run(str(index)))
            now = await store.wait_for_runs("s", after=before, timeout_ms=HOUR_MS)
            assert now == await second.wait_for_runs("s", timeout_ms=0) > before

    async def test_stopping_one_node_leaves_the_waiters_of_the_other(
        self, store: StoreUnderTest, second: StoreUnderTest, clock: JumpingClock
    ) -> None:
        mine, others = (
            asyncio.create_task(node.get_events("s", wait_timeout_ms=HOUR_MS)) for node in (store, second)
        )
        await clock.advance_ms(0)
        await store.stop()
        assert await mine == []
        await second.append_events(events(1))
        assert numbers(await others) == [1]
