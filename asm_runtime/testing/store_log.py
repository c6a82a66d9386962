"""The suite of every store: the event log and the long poll."""

# ruff: noqa: D102  the names of the tests are their sentences

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asm_runtime.errors import LeaseLost
from asm_runtime.ports import ExecutionResult, Order
from asm_runtime.records import Event, EventType, Fence
from asm_runtime.testing.clock import JumpingClock
from asm_runtime.testing.store_case import (
    HOUR_MS,
    StoreCase,
    StoreUnderTest,
    events,
    ids,
    json_size,
    numbers,
    run,
    session,
)

__all__ = ["LogCase", "LongPollCase"]

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


class LogCase(StoreCase):
    """Appending and reading."""

    async def test_events_are_numbered_one_two_three_in_each_session(self, store: StoreUnderTest) -> None:
        for number in (1, 2, 3):
            for id in ("s", "other"):
                stored = await store.append_event_with_sequence(events(1, id)[0])
                assert stored.sequence_number == number
        assert numbers(await store.get_events("s")) == [1, 2, 3]
        assert await store.get_latest_sequence("s") == 3
        assert await store.get_latest_sequence("unknown") == 0

    async def test_an_event_reads_back_as_it_was_appended(self, store: StoreUnderTest) -> None:
        given = Event(
            id="e",
            type=EventType.TOOL_CALL_STARTED,
            session_id="s",
            run_id="r",
            timestamp=NOON + timedelta(microseconds=1),
            data={"name": "t"},
            metadata={"provider": "p"},
            schema_version=7,
            provider="p",
            correlation_id="c",
        )
        plain = events(1)[0]
        stored = await store.append_events([given, plain])
        assert stored == [given.replace(sequence_number=1), plain.replace(sequence_number=2)]
        assert await store.get_events("s") == stored

    async def test_append_event_stores_it_and_answers_nothing(self, store: StoreUnderTest) -> None:
        event = events(1)[0]
        await store.append_event(event)
        assert await store.get_events("s") == [event.replace(sequence_number=1)]

    async def test_an_append_is_read_at_once(self, store: StoreUnderTest) -> None:
        for number in range(1, 30):
            await store.append_event(events(1)[0])
            assert await store.get_latest_sequence("s") == number
            assert numbers(await store.get_events("s", order="desc", limit=1)) == [number]

    async def test_a_number_set_by_the_caller_is_replaced(self, store: StoreUnderTest) -> None:
        stored = await store.append_events([event.replace(sequence_number=77) for event in events(2)])
        assert numbers(stored) == numbers(await store.get_events("s")) == [1, 2]

    async def test_the_same_event_again_is_answered_with_the_stored_one(self, store: StoreUnderTest) -> None:
        first = await store.append_event_with_sequence(events(1, data={"a": 1}, run_id="r")[0])
        again = first.replace(data={"a": 2}, type=EventType.RUN_STARTED, run_id="x", sequence_number=9)
        assert await store.append_event_with_sequence(again) == first
        await store.append_event(again)
        assert await store.append_events([again]) == [first]
        assert await store.get_events("s") == [first]
        assert await store.get_events("s", run_id="x") == []
        assert numbers(await store.append_events(events(1))) == [2]

    async def test_event_ids_are_unique_within_their_session_only(self, store: StoreUnderTest) -> None:
        await store.append_events(events(1, id="e", data={"of": "s"}))
        stored = await store.append_events(events(1, "other", id="e", data={"of": "other"}))
        assert numbers(stored) == [1]
        assert (await store.get_events("other"))[0].data == {"of": "other"}

    async def test_a_batch_is_numbered_in_input_order_and_may_span_sessions(
        self, store: StoreUnderTest
    ) -> None:
        a, b, c, d, e = (*events(1), *events(1, "other"), *events(2), *events(1, "other"))
        batch = [d, b, a, e, c]
        stored = await store.append_events(batch)
        assert ids(stored) == ids(batch)
        assert numbers(stored) == [1, 1, 2, 2, 3]
        assert ids(await store.get_events("s")) == ids([d, a, c])
        assert ids(await store.get_events("other")) == ids([b, e])

    async def test_duplicates_in_a_batch_use_no_number(self, store: StoreUnderTest) -> None:
        old = (await store.append_events(events(1)))[0]
        a, b = events(2)
        stored = await store.append_events([a, old, a.replace(data={"late": 1}), b, old, b])
        assert ids(stored) == ids([a, old, a, b, old, b])
        assert numbers(stored) == [2, 1, 2, 3, 1, 3]
        assert stored[2].data == {}
        assert numbers(await store.get_events("s")) == [1, 2, 3]

    async def test_an_empty_batch_is_answered_with_an_empty_list(self, store: StoreUnderTest) -> None:
        assert await store.append_events([]) == []
        assert await store.append_events(()) == []

    async def test_a_large_batch_is_stored_whole(self, store: StoreUnderTest) -> None:
        batch = events(2500)
        assert numbers(await store.append_events(tuple(batch))) == list(range(1, 2501))
        assert ids(await store.get_events("s")) == ids(batch)
        assert ids(await store.get_events("s", limit=1100)) == ids(batch[:1100])
        newest = await store.get_events("s", type="custom", limit=1100, order="desc")
        assert ids(newest) == ids(batch[:-1101:-1])

    async def test_others_have_their_turn_while_a_large_batch_is_stored(self, store: StoreUnderTest) -> None:
        batch = events(5000, data={"list": [1] * 200})
        storing = asyncio.create_task(store.append_events(batch))
        turns = 0
        while not storing.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns >= 10
        assert numbers(await storing) == list(range(1, 5001))
        assert numbers(await store.get_events("s", order="desc", limit=2)) == [5000, 4999]

    async def test_nobody_sees_a_part_of_a_large_batch(self, store: StoreUnderTest) -> None:
        async def look() -> int:
            return len(await store.get_events("s"))

        storing = asyncio.create_task(store.append_events(events(2000)))
        seen: set[int] = set()
        while not storing.done():
            seen.add(await look())
            await asyncio.sleep(0)
        assert seen <= {0, 2000}
        assert await look() == 2000

    async def test_numbers_have_no_gap_under_concurrency(self, store: StoreUnderTest) -> None:
        async def writer(name: str) -> list[Event]:
            mine: list[Event] = []
            for round in range(10):
                mine.append(await store.append_event_with_sequence(events(1, run_id=name)[0]))
                mine += await store.append_events(events(2, run_id=name))
                if round % 3 == 0:
                    mine += await store.append_events([mine[0], *events(1, "other")])
                    del mine[-2:]
                    await store.flush(ExecutionResult(run=run(name, status="running"), events=mine[-1:]))
            return mine

        writers = [f"w{index}" for index in range(12)]
        written = dict(zip(writers, await asyncio.gather(*map(writer, writers)), strict=True))
        found = await store.get_events("s")
        assert numbers(found) == list(range(1, 12 * 30 + 1))
        for name, mine in written.items():
            assert [event for event in found if event.run_id == name] == mine
        assert numbers(await store.get_events("other")) == list(range(1, 49))

    # -- reading

    async def test_cursors_are_exclusive(self, store: StoreUnderTest) -> None:
        await store.append_events(events(6))
        assert numbers(await store.get_events("s", after=4)) == [5, 6]
        assert numbers(await store.get_events("s", after=0)) == [1, 2, 3, 4, 5, 6]
        assert numbers(await store.get_events("s", before=3)) == [1, 2]
        assert numbers(await store.get_events("s", after=2, before=5)) == [3, 4]
        assert numbers(await store.get_events("s", after=2, before=3)) == []
        assert numbers(await store.get_events("s", before=0)) == []
        assert numbers(await store.get_events("s", after=6)) == []
        assert numbers(await store.get_events("s", after=2**63 - 1)) == []
        assert numbers(await store.get_events("s", before=2**63 - 1)) == [1, 2, 3, 4, 5, 6]

    async def test_pages_read_in_both_directions_meet_every_event_once(self, store: StoreUnderTest) -> None:
        await store.append_events(events(23))
        forward: list[int | None] = []
        while page := await store.get_events("s", after=forward[-1] if forward else None, limit=5):
            assert len(page) <= 5
            forward += numbers(page)
        assert forward == list(range(1, 24))
        backward: list[int | None] = []
        while page := await store.get_events(
            "s", before=backward[-1] if backward else None, limit=5, order="desc"
        ):
            backward += numbers(page)
        assert backward == forward[::-1]

    async def test_order_decides_which_end_a_limit_takes(self, store: StoreUnderTest) -> None:
        await store.append_events(events(5))
        assert numbers(await store.get_events("s", limit=2)) == [1, 2]
        assert numbers(await store.get_events("s", limit=2, order="desc")) == [5, 4]
        assert numbers(await store.get_events("s", after=1, before=5, limit=2, order="desc")) == [4, 3]
        assert numbers(await store.get_events("s", limit=99, order="desc")) == [5, 4, 3, 2, 1]

    async def test_runs_and_types_take_one_value_or_a_collection(self, store: StoreUnderTest) -> None:
        for run_id, type in (
            ("a", "run_started"),
            ("b", "run_started"),
            ("a", "custom"),
            (None, "custom"),
            ("b", "run_completed"),
            ("a", "run_completed"),
        ):
            await store.append_events(events(1, run_id=run_id, type=type))

        async def found(**filter: Any) -> list[int | None]:
            return numbers(await store.get_events("s", **filter))

        assert await found(run_id="a") == [1, 3, 6]
        assert await found(run_id=["a", "b"]) == [1, 2, 3, 5, 6]
        assert await found(run_id={"b", "unknown"}) == [2, 5]
        assert await found(run_id="unknown") == []
        assert await found(run_id=()) == []
        assert await found(type="custom") == [3, 4]
        assert await found(type=EventType.RUN_STARTED) == [1, 2]
        assert await found(type=[EventType.RUN_STARTED, "run_completed"]) == [1, 2, 5, 6]
        assert await found(type=frozenset(("policy_violation",))) == []
        assert await found(type=[]) == []
        assert await found(run_id="a", type=[]) == []
        assert await found(run_id=["a", "b"], type=["run_completed", "custom"]) == [3, 5, 6]
        assert await found(run_id="a", type="custom", after=3) == []
        assert await found(run_id=["a", "b"], order="desc", limit=2, before=6) == [5, 3]
        assert await found(type=["run_started", "custom"], after=1, limit=2) == [2, 3]

    async def test_since_takes_strictly_later_timestamps_wherever_they_stand(
        self, store: StoreUnderTest
    ) -> None:
        for minutes in (5, 1, 3, 2, 4):
            await store.append_events(events(1, timestamp=NOON + timedelta(minutes=minutes)))
        late = NOON + timedelta(minutes=3)
        assert numbers(await store.get_events("s", since=late)) == [1, 5]
        assert numbers(await store.get_events("s", since=late - timedelta(microseconds=1))) == [1, 3, 5]
        assert numbers(await store.get_events("s", since=late, order="desc", limit=1)) == [5]
        assert numbers(await store.get_events("s", since=late.astimezone(), after=1)) == [5]
        assert numbers(await store.get_events("s", since=NOON + timedelta(days=1))) == []

    @pytest.mark.parametrize("order", ["asc", "desc"])
    async def test_max_bytes_stops_before_the_event_that_passes_it(
        self, store: StoreUnderTest, order: Order
    ) -> None:
        texts = ["", "x" * 500, "é" * 100, '\n"' * 90, "x" * 5000, "", "🙂" * 40, "x" * 900]
        await store.append_events([events(1, data={"text": text}, metadata={"a": 1.5})[0] for text in texts])
        log = await store.get_events("s", order=order)
        sizes = [json_size(event) for event in log]
        for start in range(len(log)):
            cursor: dict[str, Any] = {}
            if start:
                cursor = {"after" if order == "asc" else "before": log[start - 1].sequence_number}
            for count in range(1, len(log) - start + 1):
                exact = sum(sizes[start : start + count])
                for max_bytes, found in ((exact, count), (exact - 1, max(1, count - 1)), (exact + 1, count)):
                    page = await store.get_events("s", max_bytes=max_bytes, order=order, **cursor)
                    assert page == log[start : start + found]
        assert await store.get_events("s", max_bytes=1, order=order) == log[:1]
        assert await store.get_events("s", max_bytes=2**62, order=order) == log
        assert await store.get_events("unknown", max_bytes=1) == []

    async def test_max_bytes_is_counted_over_what_matches_and_the_limit_holds_too(
        self, store: StoreUnderTest
    ) -> None:
        await store.append_events(
            [
                events(1, data={"text": "x" * 200}, type=type, run_id=run_id)[0]
                for _ in range(100)
                for type, run_id in (("custom", "a"), ("run_started", "b"), ("run_started", "a"))
            ]
        )
        size = json_size((await store.get_events("s", limit=1))[0])
        filters: list[dict[str, Any]] = [
            {"run_id": "a"},
            {"type": "run_started"},
            {"run_id": ["a", "x"], "type": "custom"},
            {"since": NOON, "after": 50},
        ]
        for filter in filters:
            matching = await store.get_events("s", **filter)
            found = await store.get_events("s", max_bytes=20 * size + size // 2, **filter)
            assert 15 <= len(found) <= 22
            assert found == matching[: len(found)]
            assert await store.get_events("s", max_bytes=50 * size, limit=3, **filter) == matching[:3]

    async def test_a_log_of_large_events_is_read_whole_in_pages_of_few_bytes(
        self, store: StoreUnderTest
    ) -> None:
        log = await store.append_events(
            [events(1, data={"text": "x" * size})[0] for size in (3, 900_000, 7, 700_000, 600_000, 1, 2)]
        )
        assert await store.get_events("s") == log
        assert await store.get_events("s", order="desc", limit=6) == log[:0:-1]
        seen: list[Event] = []
        while page := await store.get_events(
            "s", after=seen[-1].sequence_number if seen else None, max_bytes=800_000
        ):
            assert len(page) == 1 or sum(map(json_size, page)) <= 800_000
            seen += page
        assert seen == log

    async def test_an_unknown_session_is_an_empty_log(self, store: StoreUnderTest) -> None:
        await store.save_session(session())
        assert await store.get_events("s") == []
        assert await store.get_events("unknown", run_id="a", order="desc", limit=1) == []

    # -- fences

    async def test_a_fence_lets_its_attempt_write_while_it_runs(self, store: StoreUnderTest) -> None:
        await store.enqueue_run(run())
        claimed = await store.claim_run("s")
        assert claimed is not None
        assert numbers(await store.append_events(events(2), fence=claimed.fence)) == [1, 2]
        assert numbers(await store.append_events(events(1, "other"), fence=claimed.fence)) == [1]
        completed = claimed.with_status("completed")
        ended = ExecutionResult(run=completed, events=events(1, type="run_completed"))
        assert numbers(await store.flush(ended, fence=claimed.fence)) == [3]
        assert await store.get_run("r") == completed

    @pytest.mark.parametrize("status", ["completed", "failed", "cancelled", "timeout", "pending"])
    async def test_a_fence_does_not_hold_when_the_run_is_not_running(
        self, store: StoreUnderTest, status: str
    ) -> None:
        await store.enqueue_run(run())
        claimed = await store.claim_run("s")
        assert claimed is not None
        await store.save_run(claimed.with_status(status))
        await self.fence_is_lost(store, claimed.fence)

    async def test_a_fence_does_not_hold_for_another_attempt_or_an_unknown_run(
        self, store: StoreUnderTest
    ) -> None:
        await store.enqueue_run(run())
        claimed = await store.claim_run("s")
        assert claimed is not None
        for fence in (
            Fence("s", "r", 0),
            Fence("s", "r", 2),
            Fence("s", "unknown", 1),
            Fence("unknown", "r", 1),
        ):
            await self.fence_is_lost(store, fence)

    async def test_an_attempt_that_was_claimed_anew_can_write_nothing(self, store: StoreUnderTest) -> None:
        await store.enqueue_run(run())
        first = await store.claim_run("s")
        assert first is not None
        await store.release_run(first.fence)
        await store.save_run(first.with_status("pending"), expected_status="running")
        second = await store.claim_run("s")
        assert second is not None
        await self.fence_is_lost(store, first.fence)
        assert numbers(await store.append_events(events(1), fence=second.fence)) == [1]

    async def test_a_run_that_was_released_may_still_write_until_it_is_settled(
        self, store: StoreUnderTest
    ) -> None:
        await store.enqueue_run(run())
        claimed = await store.claim_run("s")
        assert claimed is not None
        await store.release_run(claimed.fence)
        assert numbers(await store.append_events(events(1), fence=claimed.fence)) == [1]
        settled = ExecutionResult(run=claimed.with_status("failed"), events=events(1, type="run_failed"))
        assert numbers(await store.flush(settled, fence=claimed.fence)) == [2]
        with pytest.raises(LeaseLost):
            await store.flush(settled, fence=claimed.fence)

    async def fence_is_lost(self, store: StoreUnderTest, fence: Fence) -> None:
        """Neither write passes, nothing of it is visible, the numbers go on without a gap."""
        before, known = await store.get_latest_sequence("s"), await store.list_runs("s")
        with pytest.raises(LeaseLost):
            await store.append_events(events(2), fence=fence)
        with pytest.raises(LeaseLost):
            await store.flush(
                ExecutionResult(session("new"), run("another", status="failed"), events(1)), fence=fence
            )
        assert await store.get_latest_sequence("s") == before
        assert await store.list_runs("s") == known
        assert await store.list_sessions() == []

    # -- cancellation

    @pytest.mark.parametrize("turns", range(8))
    async def test_a_cancelled_append_is_done_or_not_begun(
        self, store: StoreUnderTest, clock: JumpingClock, turns: int
    ) -> None:
        batch = events(3)
        task = asyncio.create_task(store.append_events(batch))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.append_event(events(1)[0])  # whatever was begun stands before it
        found = await store.get_events("s")
        assert ids(found)[:-1] in ([], ids(batch))
        assert numbers(found) == list(range(1, len(found) + 1))

    @pytest.mark.parametrize("turns", range(8))
    async def test_a_cancelled_flush_is_done_or_not_begun(self, store: StoreUnderTest, turns: int) -> None:
        task = asyncio.create_task(store.flush(ExecutionResult(session(), run(), events(2))))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.append_event(events(1, "other")[0])
        parts = [len(await store.list_sessions()), len(await store.list_runs("s"))]
        assert [*parts, await store.get_latest_sequence("s")] in ([0, 0, 0], [1, 1, 2])


class LongPollCase(StoreCase):
    """Waiting for the log to grow."""

    async def test_what_matches_already_is_answered_at_once(self, store: StoreUnderTest) -> None:
        await store.append_events(events(3))
        assert numbers(await store.get_events("s", after=1, wait_timeout_ms=HOUR_MS)) == [2, 3]

    async def test_the_first_append_that_matches_answers_with_the_matching_events(
        self, store: StoreUnderTest, clock: JumpingClock
    ) -> None:
        await store.append_events(events(2))
        parked = await self.begun(
            clock,
            asyncio.create_task(store.get_events("s", after=2, run_id="r", wait_timeout_ms=HOUR_MS)),
        )
        await store.append_event(events(1)[0])
        await store.append_events(events(2, "other", run_id="r"))
        batch = [*events(1), *events(1, run_id="r"), *events(1, run_id="x"), *events(1, run_id="r")]
        stored = await store.append_events(batch)
        assert await parked == [stored[1], stored[3]]
        assert numbers(await parked) == [5, 7]

    @pytest.mark.parametrize("way", ["append_event", "append_event_with_sequence", "append_events", "flush"])
    async def test_every_way_to_append_wakes(
        self, store: StoreUnderTest, clock: JumpingClock, way: str
    ) -> None:
        parked = await self.begun(clock, asyncio.create_task(store.get_events("s", wait_timeout_ms=HOUR_MS)))
        event = events(1)[0]
        arguments: dict[str, Any] = {"append_events": [event], "flush": ExecutionResult(events=[event])}
        await getattr(store, way)(arguments.get(way, event))
        assert await parked == [event.replace(sequence_number=1)]

    async def test_limit_and_order_hold_for_what_wakes(
        self, store: StoreUnderTest, clock: JumpingClock
    ) -> None:
        ascending, descending = (
            asyncio.create_task(store.get_events("s", limit=2, order=order, wait_timeout_ms=HOUR_MS))
            for order in ("asc", "desc")
        )
        await clock.advance_ms(0)
        await store.append_events(events(3))
        assert numbers(await ascending) == [1, 2]
        assert numbers(await descending) == [3, 2]

    async def test_max_bytes_holds_for_what_wakes(self, store: StoreUnderTest, clock: JumpingClock) -> None:
        size = json_size((await store.append_events(events(1)))[0])
        waits = (1, size, 2 * size, 3 * size + 1)
        parked = [
            asyncio.create_task(store.get_events("s", after=1, max_bytes=one, wait_timeout_ms=HOUR_MS))
            for one in waits
        ]
        await clock.advance_ms(0)
        await store.append_events(events(5))
        assert [numbers(await one) for one in parked] == [[2], [2], [2, 3], [2, 3, 4]]

    async def test_a_cursor_ahead_of_the_log_waits_for_numbers_past_it(
        self, store: StoreUnderTest, clock: JumpingClock
    ) -> None:
        parked = await self.begun(
            clock, asyncio.create_task(store.get_events("s", after=2, wait_timeout_ms=HOUR_MS))
        )
        await store.append_events(events(2))
        await store.append_events(events(1))
        assert numbers(await parked) == [3]

    async def test_since_and_before_hold_for_what_wakes(
        self, store: StoreUnderTest, clock: JumpingClock
    ) -> None:
        late = asyncio.create_task(store.get_events("s", since=NOON, wait_timeout_ms=HOUR_MS))
        early = asyncio.create_task(store.get_events("s", before=3, wait_timeout_ms=HOUR_MS))
        await clock.advance_ms(0)
        await store.append_events(events(1, timestamp=NOON))
        assert numbers(await early) == [1]
        await store.append_events(events(1, timestamp=NOON + timedelta(seconds=1)))
        assert numbers(await late) == [2]

    async def test_at_the_timeout_the_answer_is_empty_and_not_before(
        self, store: StoreUnderTest, clock: JumpingClock
    ) -> None:
        parked = asyncio.create_task(store.get_events("s", run_id="r", wait_timeout_ms=5000))
        await clock.until_timers(1)
        await clock.advance_ms(4000)
        await store.append_events(events(1))
        assert not parked.done()
        assert await self.ended(clock, parked) == []
        assert clock.monotonic() >= 5

    @pytest.mark.parametrize("nothing", [{"type": []}, {"run_id": ()}, {"after": 3, "before": 4}])
    async def test_what_can_never_match_is_empty_at_the_timeout(
        self, store: StoreUnderTest, clock: JumpingClock, nothing: dict[str, Any]
    ) -> None:
        parked = await self.begun(
            clock, asyncio.create_task(store.get_events("s", wait_timeout_ms=5000, **nothing))
        )
        await store.append_events(events(5, run_id="r"))
        assert await self.ended(clock, parked) == []

    async def test_a_timeout_of_zero_does_not_wait(self, store: StoreUnderTest) -> None:
        assert await store.get_events("s", wait_timeout_ms=0) == []

    async def test_a_parked_caller_blocks_nobody(self, store: StoreUnderTest, clock: JumpingClock) -> None:
        parked = [
            asyncio.create_task(store.get_events(f"{index % 7}", wait_timeout_ms=HOUR_MS))
            for index in range(200)
        ]
        await clock.advance_ms(0)
        await store.save_session(session())
        assert (await store.get_session("s")).id == "s"
        assert numbers(await store.append_events(events(3))) == [1, 2, 3]
        for index in range(7):
            await store.append_event(events(1, f"{index}")[0])
        assert [numbers(found) for found in await asyncio.gather(*parked)] == [[1]] * 200

    async def test_a_cancelled_waiter_leaves_nothing_behind(
        self, store: StoreUnderTest, clock: JumpingClock
    ) -> None:
        idle = clock.timers
        parked = [asyncio.create_task(store.get_events("s", wait_timeout_ms=HOUR_MS)) for _ in range(3)]
        await clock.until_timers(idle + 3)
        parked[1].cancel()
        await asyncio.gather(parked[1], return_exceptions=True)
        assert parked[1].cancelled()
        await store.append_events(events(1))
        assert [numbers(await parked[index]) for index in (0, 2)] == [[1], [1]]
        # A store that looks for changes by others may do so once more before it rests.
        await self.eventually(clock, lambda: clock.timers <= idle)

    async def test_deleting_the_session_answers_with_nothing(
        self, store: StoreUnderTest, clock: JumpingClock
    ) -> None:
        await store.append_events(events(1))
        parked = await self.begun(
            clock, asyncio.create_task(store.get_events("s", after=1, wait_timeout_ms=HOUR_MS))
        )
        other = asyncio.create_task(store.get_events("other", wait_timeout_ms=HOUR_MS))
        await store.delete_session("s")
        assert await parked == []
        await store.append_events(events(1, "other"))
        assert numbers(await other) == [1]

    @pytest.mark.parametrize("turns", range(12))
    async def test_an_append_at_any_moment_of_the_parking_is_not_missed(
        self, store: StoreUnderTest, turns: int
    ) -> None:
        parked = asyncio.create_task(store.get_events("s", wait_timeout_ms=HOUR_MS))
        for _ in range(turns):
            await asyncio.sleep(0)
        await store.append_event(events(1)[0])
        assert numbers(await parked) == [1]

    async def test_readers_that_follow_a_busy_log_see_every_event_once_in_order(
        self, store: StoreUnderTest
    ) -> None:
        async def follow(**filter: Any) -> list[int | None]:
            seen: list[int | None] = []
            while not seen or seen[-1] != 300:
                after = seen[-1] if seen else None
                seen += numbers(await store.get_events("s", after=after, wait_timeout_ms=HOUR_MS, **filter))
            return seen

        async def write(name: str) -> None:
            for _ in range(30):
                await store.append_event(events(1, run_id=name)[0])

        everything = [asyncio.create_task(follow()) for _ in range(3)]
        pages = asyncio.create_task(follow(limit=2))
        mine = asyncio.create_task(follow(run_id=["w0", "last"]))
        await asyncio.gather(*(write(f"w{index}") for index in range(9)))
        await store.append_events(events(29))
        await store.append_events(events(1, run_id="last"))
        for seen in await asyncio.gather(*everything, pages):
            assert seen == list(range(1, 301))
        assert await mine == numbers(await store.get_events("s", run_id=["w0", "last"]))

    async def test_each_waiter_is_given_payloads_of_its_own(
        self, store: StoreUnderTest, clock: JumpingClock
    ) -> None:
        parked = [asyncio.create_task(store.get_events("s", wait_timeout_ms=HOUR_MS)) for _ in range(2)]
        await clock.advance_ms(0)
        stored = await store.append_events(events(1, data={"list": []}))
        first, second = await asyncio.gather(*parked)
        first[0].data["list"].append(1)
        stored[0].data["list"].append(2)
        assert second[0].data == (await store.get_events("s"))[0].data == {"list": []}
