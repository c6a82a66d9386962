"""The suite of every store: the queue, owners, orphans, and waiting for runs to change."""

# ruff: noqa: D102  the names of the tests are their sentences

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asm_runtime.errors import Conflict, InvalidTransition, QueueFull
from asm_runtime.ports import ExecutionResult
from asm_runtime.records import Fence, Run, RunStatus
from asm_runtime.testing.clock import JumpingClock
from asm_runtime.testing.store_case import (
    HOUR_MS,
    TERMINAL_RUNS,
    TERMINAL_SESSIONS,
    StoreCase,
    StoreUnderTest,
    events,
    ids,
    run,
    session,
)

__all__ = ["QueueCase", "RevisionCase"]

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


async def claimed(call: Awaitable[Run | None]) -> Run:
    """The run that was claimed; one must have been."""
    found = await call
    assert found is not None
    return found


class QueueCase(StoreCase):
    """Enqueueing, claiming, releasing."""

    # -- enqueue

    async def test_an_accepted_run_is_stored_as_pending(self, store: StoreUnderTest) -> None:
        given = run(input={"a": 1}, metadata={"options": {}})
        assert await store.enqueue_run(given) == given
        assert await store.get_run("r") == given

    @pytest.mark.parametrize("status", list(RunStatus))
    async def test_the_same_run_again_is_answered_with_the_stored_one_whatever_its_status(
        self, store: StoreUnderTest, status: RunStatus
    ) -> None:
        stored = run(status=status, input={"a": 1, "b": [2]}, metadata={"first": True})
        await store.save_run(stored)
        again = run(input={"b": [2], "a": 1}, metadata={"second": True}, created_at=NOON)
        assert await store.enqueue_run(again) == stored
        assert await store.list_runs("s") == [stored]

    @pytest.mark.parametrize(
        ("stored", "asked"),
        [
            ({"a": 1}, {"a": 2}),
            ({"a": 1}, {}),
            ({"a": 1}, {"a": 1.0}),
            ({"a": 1}, {"a": True}),
            ({"a": False}, {"a": 0}),
            ({"a": None}, {}),
            ([1, 2], [2, 1]),
            (None, {}),
            ("", None),
        ],
    )
    async def test_another_input_under_a_known_id_is_a_conflict(
        self, store: StoreUnderTest, stored: Any, asked: Any
    ) -> None:
        await store.enqueue_run(run(input=stored))
        with pytest.raises(Conflict):
            await store.enqueue_run(run(input=asked))
        (kept,) = await store.list_runs("s")
        assert repr(kept.input) == repr(stored)

    async def test_the_same_id_in_another_session_is_another_run(self, store: StoreUnderTest) -> None:
        await store.enqueue_run(run("r", "s", input=1))
        assert (await store.enqueue_run(run("r", "other", input=2))).input == 2

    @pytest.mark.parametrize("status", TERMINAL_SESSIONS)
    async def test_a_terminal_session_takes_no_runs(self, store: StoreUnderTest, status: str) -> None:
        await store.save_session(session(status=status))
        with pytest.raises(InvalidTransition) as refused:
            await store.enqueue_run(run())
        assert refused.value.from_status == status
        assert await store.list_runs("s") == []

    @pytest.mark.parametrize("status", ["pending", "active", "paused"])
    async def test_a_session_that_lives_takes_runs(self, store: StoreUnderTest, status: str) -> None:
        await store.save_session(session(status=status))
        await store.enqueue_run(run())
        assert ids(await store.list_runs("s")) == ["r"]

    async def test_a_full_queue_takes_nothing(self, store: StoreUnderTest) -> None:
        await store.save_run(run("done", status="completed"))
        await store.save_run(run("runs", status="running"))
        await store.enqueue_run(run("1"), max_open_runs=2)
        with pytest.raises(QueueFull):
            await store.enqueue_run(run("2"), max_open_runs=2)
        await store.enqueue_run(run("elsewhere", "other"), max_open_runs=1)
        assert ids(await store.list_runs("s")) == ["done", "runs", "1"]
        await store.save_run(run("runs", status="failed"))
        await store.enqueue_run(run("2"), max_open_runs=2)
        with pytest.raises(QueueFull):
            await store.enqueue_run(run("3"), max_open_runs=0)
        await store.enqueue_run(run("3"))

    async def test_a_known_run_is_answered_before_the_session_and_the_room_are_asked(
        self, store: StoreUnderTest
    ) -> None:
        await store.save_session(session())
        await store.enqueue_run(run(input=1))
        await store.save_session(session(status="failed"))
        assert (await store.enqueue_run(run(input=1), max_open_runs=1)).id == "r"
        with pytest.raises(Conflict):
            await store.enqueue_run(run(input=2), max_open_runs=1)
        with pytest.raises(InvalidTransition):
            await store.enqueue_run(run("new"), max_open_runs=1)

    async def test_many_who_enqueue_at_once_do_not_exceed_the_room(self, store: StoreUnderTest) -> None:
        outcomes = await asyncio.gather(
            *(store.enqueue_run(run(str(index)), max_open_runs=5) for index in range(20)),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, Run) for outcome in outcomes) == 5
        assert sum(isinstance(outcome, QueueFull) for outcome in outcomes) == 15
        assert len(await store.list_runs("s")) == 5

    async def test_the_same_run_enqueued_at_once_by_many_is_stored_once(self, store: StoreUnderTest) -> None:
        stored = await asyncio.gather(
            *(store.enqueue_run(run(metadata={"by": index}), max_open_runs=1) for index in range(10))
        )
        assert len({one.metadata["by"] for one in stored}) == 1
        assert await store.list_runs("s") == stored[:1]

    # -- claim

    async def test_a_claim_makes_the_run_running_with_an_owner_a_start_and_the_next_attempt(
        self, store: StoreUnderTest, clock: JumpingClock
    ) -> None:
        given = run(input={"a": 1})
        await store.enqueue_run(given)
        await clock.advance_ms(1500)
        got = await claimed(store.claim_run("s"))
        assert got.owner is not None
        assert got == given.replace(
            status=RunStatus.RUNNING, owner=got.owner, attempt=1, started_at=got.started_at
        )
        assert got.started_at is not None
        assert got.started_at.tzinfo is UTC
        assert await store.get_run("r") == got
        assert got.fence == Fence("s", "r", 1)

    async def test_runs_are_claimed_in_the_order_of_their_acceptance(self, store: StoreUnderTest) -> None:
        for id, days in (("c", 0), ("a", 5), ("b", -5)):
            await store.enqueue_run(run(id, created_at=NOON + timedelta(days=days)))
        assert [(await claimed(store.claim_run("s"))).id for _ in range(3)] == ["c", "a", "b"]
        assert await store.claim_run("s") is None

    async def test_one_owner_claims_all_of_a_store(self, store: StoreUnderTest) -> None:
        for session_id in ("s", "other"):
            await store.enqueue_run(run("r", session_id))
        owners = {(await claimed(store.claim_run(session_id))).owner for session_id in ("s", "other")}
        assert len(owners) == 1

    async def test_a_certain_run_is_claimed_by_its_id(self, store: StoreUnderTest) -> None:
        for id in ("1", "2", "3"):
            await store.enqueue_run(run(id))
        assert (await claimed(store.claim_run("s", run_id="2"))).id == "2"
        assert await store.claim_run("s", run_id="2") is None
        assert await store.claim_run("s", run_id="unknown") is None
        assert await store.claim_run("other", run_id="1") is None
        assert (await claimed(store.claim_run("s"))).id == "1"

    @pytest.mark.parametrize("status", [RunStatus.RUNNING, *TERMINAL_RUNS])
    async def test_only_a_pending_run_is_claimed(self, store: StoreUnderTest, status: str) -> None:
        await store.save_run(run(status=status))
        assert await store.claim_run("s") is None
        assert await store.claim_run("s", run_id="r") is None
        assert (await store.get_run("r")).attempt == 0

    @pytest.mark.parametrize("status", ["pending", "paused", *TERMINAL_SESSIONS])
    async def test_nothing_is_claimed_in_a_session_that_is_not_active(
        self, store: StoreUnderTest, status: str
    ) -> None:
        await store.enqueue_run(run())
        if status == "completed":
            await store.save_run(run(status="completed"))
            await store.save_session(session(status=status))
            await store.save_run(run("late"))
        else:
            await store.save_session(session(status=status))
        assert await store.claim_run("s") is None
        assert await store.claim_run("s", run_id="r") is None

    async def test_a_session_that_becomes_active_gives_its_runs(self, store: StoreUnderTest) -> None:
        await store.save_session(session(status="paused"))
        await store.enqueue_run(run())
        await store.save_session(session())
        assert (await claimed(store.claim_run("s"))).id == "r"

    async def test_no_more_runs_are_claimed_than_there_are_slots(self, store: StoreUnderTest) -> None:
        await store.save_run(run("foreign", status="running", owner="nod_unknown"))
        for id in ("1", "2", "3"):
            await store.enqueue_run(run(id))
        assert await store.claim_run("s", max_concurrent_runs=0) is None
        assert await store.claim_run("s", max_concurrent_runs=1) is None
        one = await claimed(store.claim_run("s", max_concurrent_runs=2))
        assert await store.claim_run("s", max_concurrent_runs=2) is None
        assert await store.claim_run("s", max_concurrent_runs=2, run_id="3") is None
        await store.save_run(one.with_status("completed"))
        assert (await claimed(store.claim_run("s", max_concurrent_runs=2))).id == "2"
        assert (await claimed(store.claim_run("s"))).id == "3"

    async def test_many_claimants_never_get_the_same_run_nor_exceed_the_slots(
        self, store: StoreUnderTest
    ) -> None:
        for index in range(30):
            await store.enqueue_run(run(f"{index:02}"))
        got = await asyncio.gather(*(store.claim_run("s", max_concurrent_runs=12) for _ in range(40)))
        assert sorted(one.id for one in got if one) == [f"{index:02}" for index in range(12)]
        assert len(await store.list_runs("s", status="running")) == 12

    async def test_a_run_that_is_queued_again_stands_in_its_old_place(self, store: StoreUnderTest) -> None:
        for id in ("1", "2", "3"):
            await store.enqueue_run(run(id))
        first, second = [await claimed(store.claim_run("s")) for _ in range(2)]
        await store.save_run(second.with_status("pending"))
        await store.save_run(first.with_status("pending"))
        again = [await claimed(store.claim_run("s")) for _ in range(3)]
        assert [(one.id, one.attempt) for one in again] == [("1", 2), ("2", 2), ("3", 1)]

    async def test_a_long_queue_is_worked_off_in_order(self, store: StoreUnderTest) -> None:
        names = [f"{index:03}" for index in range(200)]
        await asyncio.gather(*(store.enqueue_run(run(name), max_open_runs=200) for name in names))
        accepted = ids(await store.list_runs("s"))
        assert sorted(accepted) == names
        worked: list[str] = []
        while one := await store.claim_run("s", max_concurrent_runs=1):
            worked.append(one.id)
            await store.flush(ExecutionResult(run=one.with_status("completed")), fence=one.fence)
        assert worked == accepted

    @pytest.mark.parametrize("turns", range(12))
    async def test_a_cancelled_claim_leaves_the_run_pending_or_orphaned(
        self, store: StoreUnderTest, clock: JumpingClock, turns: int
    ) -> None:
        await store.enqueue_run(run())
        task = asyncio.create_task(store.claim_run("s"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(outcome, Run):
            await store.release_run(outcome.fence)

        async def is_free() -> bool:
            return (await store.get_run("r")).status == "pending" or await store.list_orphaned_runs() != []

        await self.eventually(clock, is_free)

    @pytest.mark.parametrize("turns", range(8))
    async def test_a_cancelled_enqueue_is_done_or_not_begun(self, store: StoreUnderTest, turns: int) -> None:
        task = asyncio.create_task(store.enqueue_run(run()))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (await store.enqueue_run(run(), max_open_runs=1)).id == "r"
        assert ids(await store.list_runs("s")) == ["r"]

    # -- release and orphans

    async def test_a_claimed_run_is_no_orphan_until_it_is_released(self, store: StoreUnderTest) -> None:
        await store.enqueue_run(run())
        got = await claimed(store.claim_run("s"))
        assert await store.list_orphaned_runs() == []
        await store.release_run(got.fence)
        released = got.replace(owner=None)
        assert await store.list_orphaned_runs() == [released]
        assert await store.get_run("r") == released
        await store.release_run(got.fence)
        assert await store.get_run("r") == released

    async def test_a_release_of_another_attempt_or_an_ended_run_does_nothing(
        self, store: StoreUnderTest
    ) -> None:
        await store.enqueue_run(run())
        first = await claimed(store.claim_run("s"))
        await store.release_run(Fence("s", "r", 2))
        await store.release_run(Fence("s", "unknown", 1))
        await store.release_run(Fence("unknown", "r", 1))
        assert await store.get_run("r") == first
        await store.save_run(first.with_status("pending"))
        await store.release_run(first.fence)
        second = await claimed(store.claim_run("s"))
        await store.release_run(first.fence)
        assert await store.get_run("r") == second
        ended = second.with_status("completed")
        await store.save_run(ended)
        await store.release_run(second.fence)
        assert await store.get_run("r") == ended

    async def test_a_running_run_is_an_orphan_without_an_owner_that_lives(
        self, store: StoreUnderTest
    ) -> None:
        for id, status, owner in (
            ("1", "running", None),
            ("2", "running", "nod_never_was"),
            ("3", "pending", None),
            ("4", "completed", "nod_never_was"),
        ):
            await store.save_run(run(id, status=status, owner=owner))
        await store.save_run(run("5", "other", status="running"))
        assert ids(await store.list_orphaned_runs(session_id="s")) == ["1", "2"]
        assert ids(await store.list_orphaned_runs(session_id="s", limit=1)) == ["1"]
        assert sorted(ids(await store.list_orphaned_runs())) == ["1", "2", "5"]
        assert len(await store.list_orphaned_runs(limit=2)) == 2
        assert await store.list_orphaned_runs(session_id="unknown") == []

    async def test_an_orphan_is_settled_once(self, store: StoreUnderTest) -> None:
        await store.save_run(run(status="running", attempt=3))
        (orphan,) = await store.list_orphaned_runs()
        outcomes = await asyncio.gather(
            *(
                store.flush(
                    ExecutionResult(run=orphan.with_status(status), events=events(1)), fence=orphan.fence
                )
                for status in ("failed", "pending", "failed")
            ),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, list) for outcome in outcomes) == 1
        assert await store.get_latest_sequence("s") == 1
        assert await store.list_orphaned_runs() == []


class RevisionCase(StoreCase):
    """`wait_for_runs`."""

    async def test_without_a_revision_to_exceed_it_answers_at_once(self, store: StoreUnderTest) -> None:
        first = await store.wait_for_runs("s", timeout_ms=None)
        await store.enqueue_run(run())
        assert await store.wait_for_runs("s", timeout_ms=HOUR_MS) > first

    async def test_a_revision_that_is_past_it_answers_at_once(self, store: StoreUnderTest) -> None:
        before = await store.wait_for_runs("s", timeout_ms=0)
        await store.enqueue_run(run())
        now = await store.wait_for_runs("s", after=before, timeout_ms=None)
        assert now == await store.wait_for_runs("s", timeout_ms=0) > before

    async def test_every_change_of_a_run_or_of_the_sessions_status_wakes(
        self, store: StoreUnderTest, clock: JumpingClock
    ) -> None:
        async def wakes(change: Awaitable[Any]) -> Any:
            revision = await store.wait_for_runs("s", timeout_ms=0)
            parked = asyncio.create_task(store.wait_for_runs("s", after=revision, timeout_ms=None))
            await self.begun(clock, parked)
            result = await change
            assert await parked > revision
            return result

        await wakes(store.save_session(session(status="pending")))
        await wakes(store.save_session(session()))
        await wakes(store.enqueue_run(run()))
        got = await wakes(store.claim_run("s"))
        await wakes(store.release_run(got.fence))
        await wakes(store.save_run(got.with_status("pending")))
        got = await wakes(store.claim_run("s", run_id="r"))
        ended = got.with_status("completed")
        await wakes(store.flush(ExecutionResult(run=ended, events=events(1)), fence=got.fence))
        await wakes(store.save_run(ended.replace(metadata={"late": True})))
        await wakes(store.flush(ExecutionResult(session=session(status="paused"))))

    async def test_the_revision_never_goes_back(self, store: StoreUnderTest) -> None:
        seen: list[int] = []
        for index in range(5):
            await store.save_run(run(str(index)))
            await store.claim_run("s")
            seen.append(await store.wait_for_runs("s", timeout_ms=0))
        assert seen == sorted(set(seen))

    async def test_at_the_timeout_it_answers_with_the_revision(
        self, store: StoreUnderTest, clock: JumpingClock
    ) -> None:
        await store.enqueue_run(run())
        revision = await store.wait_for_runs("s", timeout_ms=0)
        assert await store.wait_for_runs("s", after=revision, timeout_ms=0) == revision
        parked = asyncio.create_task(store.wait_for_runs("s", after=revision, timeout_ms=5000))
        await clock.until_timers(1)
        await clock.advance_ms(4000)
        await store.enqueue_run(run("elsewhere", "other"))
        assert not parked.done()
        assert await self.ended(clock, parked) == revision
        assert clock.monotonic() >= 5

    async def test_a_revision_far_ahead_waits_until_it_is_passed(
        self, store: StoreUnderTest, clock: JumpingClock
    ) -> None:
        revision = await store.wait_for_runs("s", timeout_ms=0)
        parked = await self.begun(
            clock, asyncio.create_task(store.wait_for_runs("s", after=revision + 1000, timeout_ms=5000))
        )
        await store.enqueue_run(run())
        await clock.advance_ms(1)
        assert not parked.done()
        assert revision < await self.ended(clock, parked) <= revision + 1000

    @pytest.mark.parametrize("turns", range(12))
    async def test_a_change_at_any_moment_after_the_look_is_not_missed(
        self, store: StoreUnderTest, turns: int
    ) -> None:
        revision = await store.wait_for_runs("s", timeout_ms=0)
        assert await store.claim_run("s") is None
        parked = asyncio.create_task(store.wait_for_runs("s", after=revision, timeout_ms=None))
        for _ in range(turns):
            await asyncio.sleep(0)
        await store.enqueue_run(run())
        assert await parked > revision

    async def test_a_cancelled_wait_leaves_nothing_behind(
        self, store: StoreUnderTest, clock: JumpingClock
    ) -> None:
        revision = await store.wait_for_runs("s", timeout_ms=0)
        parked = [
            asyncio.create_task(store.wait_for_runs("s", after=revision, timeout_ms=None)) for _ in range(3)
        ]
        await clock.advance_ms(0)
        parked[1].cancel()
        await asyncio.gather(parked[1], return_exceptions=True)
        assert parked[1].cancelled()
        await store.enqueue_run(run())
        assert await parked[0] == await parked[2] > revision

    async def test_deleting_the_session_answers_who_waits(
        self, store: StoreUnderTest, clock: JumpingClock
    ) -> None:
        await store.enqueue_run(run())
        revision = await store.wait_for_runs("s", timeout_ms=0)
        parked = await self.begun(
            clock, asyncio.create_task(store.wait_for_runs("s", after=revision, timeout_ms=None))
        )
        await store.delete_session("s")
        assert isinstance(await parked, int)
