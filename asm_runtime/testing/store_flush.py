"""The suite of every store: compare-and-set, and `flush`."""

# ruff: noqa: D102  the names of the tests are their sentences

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from asm_runtime.errors import (
    AsmError,
    Conflict,
    InvalidTransition,
    LeaseLost,
    SessionNotFound,
    ValidationError,
)
from asm_runtime.ports import ExecutionResult
from asm_runtime.records import Fence, RunStatus, SessionStatus
from asm_runtime.testing.store_case import (
    TERMINAL_RUNS,
    TERMINAL_SESSIONS,
    StoreCase,
    StoreUnderTest,
    events,
    ids,
    numbers,
    run,
    session,
)

__all__ = ["FlushCase"]


class FlushCase(StoreCase):
    """Writes that depend on what is stored, and those of a session, a run and events at once."""

    # -- compare-and-set

    async def test_a_session_is_saved_only_if_its_status_is_the_expected_one(
        self, store: StoreUnderTest
    ) -> None:
        with pytest.raises(Conflict):
            await store.save_session(session(), expected_status="active")
        await store.save_session(session(), expected_status="absent")
        for expected in ("absent", "paused", "completed"):
            with pytest.raises(Conflict):
                await store.save_session(session(status="paused"), expected_status=expected)
        assert (await store.get_session("s")).status == "active"
        await store.save_session(session(status="paused"), expected_status=SessionStatus.ACTIVE)
        assert (await store.get_session("s")).status == "paused"

    async def test_a_run_is_saved_only_if_its_status_is_the_expected_one(self, store: StoreUnderTest) -> None:
        with pytest.raises(Conflict):
            await store.save_run(run(), expected_status="pending")
        await store.save_run(run(), expected_status="absent")
        for expected in ("absent", "running", "completed"):
            with pytest.raises(Conflict):
                await store.save_run(run(status="cancelled"), expected_status=expected)
        assert (await store.get_run("r")).status == "pending"
        await store.save_run(run(status="cancelled"), expected_status=RunStatus.PENDING)
        assert (await store.get_run("r")).status == "cancelled"

    async def test_of_two_who_expect_the_same_status_one_wins(self, store: StoreUnderTest) -> None:
        await store.save_session(session())
        outcomes = await asyncio.gather(
            *(
                store.save_session(session(status=status), expected_status="active")
                for status in ("completed", "failed", "cancelled", "paused")
            ),
            return_exceptions=True,
        )
        assert sum(outcome is None for outcome in outcomes) == 1
        assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 3

    @pytest.mark.parametrize("stored", TERMINAL_SESSIONS)
    async def test_a_terminal_session_keeps_its_status(
        self, store: StoreUnderTest, stored: SessionStatus
    ) -> None:
        await store.save_session(session(status=stored))
        for status in SessionStatus:
            if status is stored:
                continue
            for write in (
                store.save_session(session(status=status)),
                store.save_session(session(status=status), expected_status=stored),
                store.flush(ExecutionResult(session=session(status=status))),
            ):
                with pytest.raises(InvalidTransition) as refused:
                    await write
                assert (refused.value.from_status, refused.value.to_status) == (stored, status)
        await store.save_session(session(status=stored, metadata={"late": True}))
        found = await store.get_session("s")
        assert (found.status, found.metadata) == (stored, {"late": True})

    @pytest.mark.parametrize("stored", TERMINAL_RUNS)
    async def test_a_terminal_run_keeps_its_status(self, store: StoreUnderTest, stored: RunStatus) -> None:
        await store.save_run(run(status=stored))
        for status in RunStatus:
            if status is stored:
                continue
            for write in (
                store.save_run(run(status=status)),
                store.save_run(run(status=status), expected_status=stored),
                store.flush(ExecutionResult(run=run(status=status))),
            ):
                with pytest.raises(InvalidTransition) as refused:
                    await write
                assert (refused.value.from_status, refused.value.to_status) == (stored, status)
        await store.save_run(run(status=stored, metadata={"late": True}))
        found = await store.get_run("r")
        assert (found.status, found.metadata) == (stored, {"late": True})

    @pytest.mark.parametrize("status", ["pending", "running"])
    async def test_no_session_becomes_completed_with_open_runs(
        self, store: StoreUnderTest, status: str
    ) -> None:
        await store.save_session(session())
        await store.save_run(run("done", status="completed"))
        await store.save_run(run("open", status=status))
        completed = session(status="completed")
        for write in (
            store.save_session(completed),
            store.save_session(completed, expected_status="active"),
            store.flush(ExecutionResult(session=completed)),
            store.flush(ExecutionResult(session=completed, run=run("another", status="completed"))),
            store.flush(ExecutionResult(session=completed, run=run("open", "other", status="completed"))),
        ):
            with pytest.raises(Conflict):
                await write
        assert (await store.get_session("s")).status == "active"
        assert ids(await store.list_runs("s")) == ["done", "open"]
        for other in ("failed", "cancelled"):
            await store.save_session(session(other, status="active"))
            await store.save_run(run("open", other, status=status))
            await store.save_session(session(other, status=other))

    async def test_a_new_session_is_not_completed_over_open_runs_either(self, store: StoreUnderTest) -> None:
        await store.save_run(run())
        with pytest.raises(Conflict):
            await store.save_session(session(status="completed"))
        with pytest.raises(SessionNotFound):
            await store.get_session("s")

    async def test_completion_is_judged_by_the_runs_after_the_write(self, store: StoreUnderTest) -> None:
        await store.save_session(session())
        await store.save_run(run(status="running"))
        with pytest.raises(Conflict):
            await store.flush(ExecutionResult(session(status="completed"), run("new")))
        await store.flush(ExecutionResult(session(status="completed"), run(status="completed")))
        assert (await store.get_session("s")).status == "completed"

    # -- flush

    async def test_flush_stores_a_session_a_run_and_events_at_once(self, store: StoreUnderTest) -> None:
        appended = [*events(2), *events(1, "other")]
        written = ExecutionResult(session(), run(status="running"), appended)
        stored = await store.flush(written)
        assert ids(stored) == ids(appended)
        assert numbers(stored) == [1, 2, 1]
        assert await store.get_session("s") == written.session
        assert await store.get_run("r") == written.run
        assert await store.get_events("s") == stored[:2]

    async def test_each_part_of_a_flush_is_optional(self, store: StoreUnderTest) -> None:
        assert await store.flush(ExecutionResult()) == []
        assert await store.flush(ExecutionResult(session=session())) == []
        assert await store.flush(ExecutionResult(run=run())) == []
        assert numbers(await store.flush(ExecutionResult(events=events(1)))) == [1]

    async def test_events_flushed_twice_are_stored_once(self, store: StoreUnderTest) -> None:
        written = ExecutionResult(run=run(status="completed"), events=events(2))
        first = await store.flush(written)
        assert await store.flush(written) == first
        assert await store.get_events("s") == first

    async def test_flush_writes_only_if_the_statuses_are_the_expected_ones(
        self, store: StoreUnderTest
    ) -> None:
        both = ExecutionResult(session(), run())
        await store.flush(both, expected_session_status="absent", expected_run_status="absent")
        ended = ExecutionResult(session(status="failed"), run(status="failed"))
        for expected_session, expected_run in (
            ("absent", None),
            ("paused", "pending"),
            ("active", "running"),
        ):
            with pytest.raises(Conflict):
                await store.flush(
                    ended, expected_session_status=expected_session, expected_run_status=expected_run
                )
        await store.flush(ended, expected_session_status="active", expected_run_status="pending")
        assert (await store.get_run("r")).status == "failed"

    async def test_a_status_expected_of_a_missing_part_is_refused(self, store: StoreUnderTest) -> None:
        with pytest.raises(ValidationError):
            await store.flush(ExecutionResult(run=run()), expected_session_status="active")
        with pytest.raises(ValidationError):
            await store.flush(ExecutionResult(session=session()), expected_run_status="pending")

    @pytest.mark.parametrize(
        "changes",
        [
            {"metadata": {"title": "new"}},
            {"metadata": {"a": 1.0, "b": [1, {"c": None}]}},
            {"updated_at": datetime(2024, 1, 2, tzinfo=UTC)},
            {"tags": ["x"]},
            {"deleted_at": datetime(2024, 1, 2, tzinfo=UTC)},
        ],
    )
    async def test_flush_writes_only_if_the_session_is_the_expected_one(
        self, store: StoreUnderTest, changes: dict[str, Any]
    ) -> None:
        seen = session(metadata={"b": [1, {"c": None}], "a": 1})
        paused = ExecutionResult(seen.with_status("paused"), events=events(1))
        with pytest.raises(Conflict):
            await store.flush(paused, expected_session=seen)
        await store.save_session(seen.replace(**changes))
        with pytest.raises(Conflict):
            await store.flush(paused, expected_session=seen)
        assert await store.get_events("s") == []
        await store.save_session(seen)
        assert numbers(await store.flush(paused, expected_session=seen)) == [1]
        assert (await store.get_session("s")).status == "paused"

    @pytest.mark.parametrize(
        "changes",
        [
            {"attempt": 1},
            {"metadata": {"edited": True}},
            {"input": {"prompt": "new"}},
            {"cost_usd": 0.0},
            {"error": {}},
        ],
    )
    async def test_flush_writes_only_if_the_run_is_the_expected_one(
        self, store: StoreUnderTest, changes: dict[str, Any]
    ) -> None:
        seen = run(metadata={"a": {"b": 1}})
        ended = ExecutionResult(run=seen.with_status("cancelled"), events=events(1))
        with pytest.raises(Conflict):
            await store.flush(ended, expected_run=seen)
        await store.save_run(seen.replace(**changes))
        with pytest.raises(Conflict):
            await store.flush(ended, expected_run=seen)
        assert await store.get_events("s") == []
        await store.save_run(seen)
        assert numbers(await store.flush(ended, expected_run=seen)) == [1]
        assert (await store.get_run("r")).status == "cancelled"

    async def test_a_row_that_was_read_is_the_expected_one(self, store: StoreUnderTest) -> None:
        """The order of keys does not matter, nor which copy it is."""
        await store.flush(
            ExecutionResult(session(metadata={"b": 2, "a": 1}), run(input={"y": 0.5, "x": [1]}))
        )
        seen_session, seen_run = await store.get_session("s"), await store.get_run("r")
        turned = seen_session.replace(metadata={"a": 1, "b": 2})
        written = ExecutionResult(seen_session, seen_run, events(1))
        assert numbers(
            await store.flush(
                written, expected_session=turned, expected_run=seen_run, expected_run_status="pending"
            )
        ) == [1]

    async def test_a_status_that_came_back_is_not_the_same_row(self, store: StoreUnderTest) -> None:
        """It was claimed and queued again between the look and the write."""
        seen = await store.enqueue_run(run())
        claimed = await store.claim_run("s")
        assert claimed is not None
        await store.flush(ExecutionResult(run=claimed.with_status("pending")), fence=claimed.fence)
        ended = ExecutionResult(run=seen.with_status("cancelled"))
        with pytest.raises(Conflict):
            await store.flush(ended, expected_run_status="pending", expected_run=seen)

    async def test_a_fence_is_judged_before_the_expected_rows(self, store: StoreUnderTest) -> None:
        await store.save_run(run())
        with pytest.raises(LeaseLost):
            await store.flush(
                ExecutionResult(run=run()), fence=Fence("s", "r", 7), expected_run=run(metadata={"x": 1})
            )

    async def test_a_row_expected_of_another_or_a_missing_part_is_refused(
        self, store: StoreUnderTest
    ) -> None:
        refused: list[tuple[ExecutionResult, dict[str, Any]]] = [
            (ExecutionResult(), {"expected_session": session()}),
            (ExecutionResult(), {"expected_run": run()}),
            (ExecutionResult(session()), {"expected_session": session("other")}),
            (ExecutionResult(run=run()), {"expected_run": run("other")}),
            (ExecutionResult(run=run()), {"expected_run": run(session_id="other")}),
            (ExecutionResult(session()), {"expected_session": "active"}),
            (ExecutionResult(run=run()), {"expected_run": session()}),
        ]
        for written, options in refused:
            with pytest.raises(ValidationError):
                await store.flush(written, **options)

    @pytest.mark.parametrize(
        ("changed", "options", "error"),
        [
            (ExecutionResult(session(), run()), {"expected_session_status": "paused"}, Conflict),
            (ExecutionResult(session(), run()), {"expected_session": session(tags=["x"])}, Conflict),
            (ExecutionResult(session(), run()), {"expected_run": run()}, Conflict),
            (ExecutionResult(session(), run()), {"expected_run_status": "absent"}, Conflict),
            (ExecutionResult(session(status="failed"), run("ended")), {}, InvalidTransition),
            (ExecutionResult(session("ended"), run(status="failed")), {}, InvalidTransition),
            (ExecutionResult(session(status="completed"), run("new")), {}, Conflict),
            (
                ExecutionResult(session(status="failed"), run(status="failed")),
                {"fence": Fence("s", "r", 7)},
                LeaseLost,
            ),
        ],
        ids=[
            "session status",
            "session",
            "run",
            "run status",
            "ended run",
            "ended session",
            "open runs",
            "fence",
        ],
    )
    async def test_a_flush_that_fails_leaves_nothing_behind(
        self,
        store: StoreUnderTest,
        changed: ExecutionResult,
        options: dict[str, Any],
        error: type[AsmError],
    ) -> None:
        before = ExecutionResult(session(), run(status="running", attempt=1), events(1))
        await store.flush(before)
        await store.save_session(session("ended", status="cancelled"))
        await store.save_run(run("ended", status="completed"))
        written = ExecutionResult(changed.session, changed.run, [*events(2), *events(1, "other")])
        with pytest.raises(error):
            await store.flush(written, **options)
        assert await store.get_session("s") == before.session
        assert await store.get_run("r") == before.run
        assert ids(await store.list_runs("s")) == ["r", "ended"]
        assert (await store.get_session("ended")).status == "cancelled"
        assert numbers(await store.get_events("s")) == [1]
        assert await store.get_latest_sequence("other") == 0
        assert numbers(await store.append_events(events(1))) == [2]
