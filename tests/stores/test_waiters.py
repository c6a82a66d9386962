from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from asm_runtime.clock import SystemClock
from asm_runtime.errors import ValidationError
from asm_runtime.observer import Observer, set_observer
from asm_runtime.records import Event
from asm_runtime.stores import pace
from asm_runtime.stores.filters import EventFilter
from asm_runtime.stores.waiters import (
    BYTES_IN_HAND,
    IN_HAND,
    TOLD_AT_ONCE,
    EventWaiters,
    RevisionWaiters,
)
from asm_runtime.testing import JumpingClock

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
EVERYTHING = EventFilter()
NO_MATCH: list[dict[str, Any]] = [
    {"run_id": []},
    {"type": ()},
    {"before": 0},
    {"before": 1},
    {"after": 5, "before": 6},
]

WRONG: list[dict[str, Any]] = [
    {"limit": 0},
    {"limit": -1},
    {"limit": True},
    {"limit": 1.0},
    {"after": -1},
    {"after": "1"},
    {"after": 2**63},
    {"before": -1},
    {"before": 1.5},
    {"since": datetime(2024, 1, 1)},
    {"since": "2024-01-01"},
    {"order": "up"},
    {"order": None},
    {"order": []},
    {"type": "nope"},
    {"type": ["custom", "nope"]},
    {"type": 5},
    {"type": [[]]},
    {"run_id": ""},
    {"run_id": 5},
    {"run_id": [None]},
    {"run_id": "a\0"},
    {"wait_timeout_ms": -1},
    {"wait_timeout_ms": None},
    {"wait_timeout_ms": 0.5},
]


def events(numbers: Iterable[int], **fields: Any) -> list[Event]:
    given: dict[str, Any] = {"type": "custom", "session_id": "s", "timestamp": NOON} | fields
    return [Event.new(sequence_number=number, **given) for number in numbers]


def numbers(found: list[Event] | None) -> list[int | None] | None:
    return None if found is None else [event.sequence_number for event in found]


# -- the filter


def test_a_filter_without_arguments_takes_everything_in_order() -> None:
    assert numbers(EventFilter.checked().pick(events([1, 2, 3]))) == [1, 2, 3]


def test_cursors_are_exclusive() -> None:
    assert numbers(EventFilter.checked(after=1, before=4).pick(events([1, 2, 3, 4, 5]))) == [2, 3]


def test_descending_order_takes_the_newest_first_and_then_the_limit() -> None:
    assert numbers(EventFilter.checked(order="desc", limit=2).pick(events([1, 2, 3]))) == [3, 2]


def test_since_is_strict_and_converted_to_utc() -> None:
    found = EventFilter.checked(since=NOON.astimezone()).pick(
        events([1]) + events([2], timestamp=NOON + timedelta(microseconds=1))
    )
    assert numbers(found) == [2]


def test_runs_and_types_may_be_one_or_several() -> None:
    mixed = events([1], run_id="a") + events([2], run_id="b", type="run_started") + events([3])
    assert numbers(EventFilter.checked(run_id="a").pick(mixed)) == [1]
    assert numbers(EventFilter.checked(run_id=["a", "b"]).pick(mixed)) == [1, 2]
    assert numbers(EventFilter.checked(type="run_started").pick(mixed)) == [2]
    assert numbers(EventFilter.checked(run_id=("a", "b"), type={"custom"}).pick(mixed)) == [1]


@pytest.mark.parametrize("nothing", NO_MATCH)
def test_a_filter_knows_that_it_matches_nothing(nothing: dict[str, Any]) -> None:
    filter = EventFilter.checked(**nothing)
    assert filter.matches_nothing
    assert filter.pick(events(range(1, 10), run_id="a")) == []


def test_a_filter_that_may_match_says_so() -> None:
    assert not EventFilter.checked().matches_nothing
    assert not EventFilter.checked(after=5, before=7, run_id="a", type="custom").matches_nothing


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_filter_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        EventFilter.checked(**wrong)


# -- waiting for events


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many are told in a turn does not depend on how busy the machine is."""
    monkeypatch.setattr(pace, "STRETCH_SECONDS", 3600)


@pytest.fixture
def clock() -> JumpingClock:
    return JumpingClock()


@pytest.fixture
async def waiters(clock: JumpingClock) -> EventWaiters:
    return EventWaiters(clock)


async def test_the_first_matching_append_answers_with_the_matching_events(waiters: EventWaiters) -> None:
    waiter = waiters.register("s", EventFilter.checked(run_id="a"))
    answer = waiter.wait(0, 1.0)
    waiters.appended("s", events([1, 2]))
    waiters.appended("s", events([3], run_id="b") + events([4], run_id="a"))
    assert numbers(await answer) == [4]
    assert len(waiters) == 0


async def test_an_append_to_another_session_answers_nobody(waiters: EventWaiters) -> None:
    waiter = waiters.register("s", EVERYTHING)
    answer = asyncio.ensure_future(waiter.wait(0, 1.0))
    waiters.appended("other", events([1]))
    await asyncio.sleep(0)
    assert not answer.done()
    assert waiters.sessions() == ["s"]
    waiter.cancel()
    assert waiters.sessions() == []


async def test_at_the_deadline_the_answer_is_empty(waiters: EventWaiters, clock: JumpingClock) -> None:
    answer = asyncio.ensure_future(waiters.register("s", EVERYTHING).wait(0, 1.0))
    await clock.advance_ms(999)
    assert not answer.done()
    await clock.advance_ms(1)
    assert await answer == []
    assert (len(waiters), clock.timers) == (0, 0)


async def test_a_deadline_that_has_passed_is_answered_at_once(
    waiters: EventWaiters, clock: JumpingClock
) -> None:
    await clock.advance_ms(1000)
    assert await waiters.register("s", EVERYTHING).wait(0, 1.0) == []


async def test_a_reader_whose_read_missed_an_append_reads_again(waiters: EventWaiters) -> None:
    waiter = waiters.register("s", EVERYTHING)
    waiters.appended("s", events([1]))
    assert await waiter.wait(0, 1.0) is None


async def test_a_reader_whose_read_has_seen_an_append_waits_on(waiters: EventWaiters) -> None:
    waiter = waiters.register("s", EventFilter.checked(run_id="a"))
    waiters.appended("s", events([1]))
    answer = waiter.wait(1, 1.0)
    waiters.appended("s", events([2], run_id="a"))
    assert numbers(await answer) == [2]


async def test_events_that_the_read_has_seen_are_not_answered_again(waiters: EventWaiters) -> None:
    answer = waiters.register("s", EVERYTHING).wait(2, 1.0)
    waiters.appended("s", events([1, 2]))
    waiters.appended("s", events([3]))
    assert numbers(await answer) == [3]


async def test_a_gap_before_the_events_in_hand_makes_the_waiter_read_again(waiters: EventWaiters) -> None:
    answer = waiters.register("s", EVERYTHING).wait(2, 1.0)
    waiters.appended("s", events([4]))
    assert await answer is None


async def test_a_change_by_another_process_makes_waiters_and_readers_read_again(
    waiters: EventWaiters,
) -> None:
    parked = waiters.register("s", EVERYTHING).wait(0, 1.0)
    reading = waiters.register("s", EVERYTHING)
    waiters.changed("s")
    assert await parked is None
    assert await reading.wait(0, 1.0) is None


async def test_a_reader_that_is_always_too_late_still_ends_at_its_deadline(
    waiters: EventWaiters, clock: JumpingClock
) -> None:
    waiter = waiters.register("s", EVERYTHING)
    waiters.changed("s")
    await clock.advance_ms(1000)
    assert await waiter.wait(0, 1.0) == []


@pytest.mark.parametrize("end", ["deletion", "stop"])
async def test_deletion_and_stop_answer_waiters_and_readers_with_nothing(
    waiters: EventWaiters, end: str
) -> None:
    parked = waiters.register("s", EVERYTHING).wait(0, 1.0)
    reading = waiters.register("s", EVERYTHING)
    if end == "stop":
        waiters.stop()
    else:
        waiters.deleted("s")
    assert await parked == []
    assert await reading.wait(0, 1.0) == []
    reading.cancel()
    assert len(waiters) == 0


async def test_a_read_that_begins_again_begins_after_what_was_read(
    waiters: EventWaiters,
) -> None:
    read: list[int] = []

    async def look(session_id: str, filter: EventFilter) -> tuple[list[Event], int]:
        read.append(filter.after)
        return ([] if filter.after < 7 else events([8])), 7

    waiting = asyncio.create_task(waiters.read_or_wait("s", EVERYTHING, 60_000, look))
    await asyncio.sleep(0)
    waiters.changed("s")
    assert numbers(await waiting) == [8]
    assert read == [0, 7]


async def test_who_is_told_to_read_again_and_then_of_the_stop_reads_no_more(waiters: EventWaiters) -> None:
    reads = 0

    async def look(session_id: str, filter: EventFilter) -> tuple[list[Event], int]:
        nonlocal reads
        reads += 1
        return [], 0

    waiting = asyncio.create_task(waiters.read_or_wait("s", EVERYTHING, 60_000, look))
    await asyncio.sleep(0)
    waiters.changed("s")
    waiters.stop()
    assert await waiting == []
    assert reads == 1


async def test_who_registers_after_the_stop_is_answered_at_once(waiters: EventWaiters) -> None:
    waiters.stop()
    assert await waiters.register("s", EVERYTHING).wait(0, 1.0) == []


async def test_a_cancelled_waiter_leaves_no_timer_and_no_entry(
    waiters: EventWaiters, clock: JumpingClock
) -> None:
    three = [waiters.register("s", EVERYTHING) for _ in range(3)]
    answers = [waiter.wait(0, 1.0) for waiter in three]
    three[1].cancel()
    three[1].cancel()
    assert (len(waiters), clock.timers) == (2, 2)
    waiters.appended("s", events([1]))
    assert [numbers(await answers[index]) for index in (0, 2)] == [[1], [1]]
    assert (len(waiters), clock.timers, waiters.sessions()) == (0, 0, [])


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]])
async def test_waiters_leave_in_any_order(waiters: EventWaiters, order: list[int]) -> None:
    three = [waiters.register("s", EVERYTHING) for _ in range(3)]
    for left, index in zip((2, 1, 0), order, strict=True):
        three[index].cancel()
        assert len(waiters) == left
        assert waiters.sessions() == (["s"] if left else [])


async def test_an_answer_to_a_caller_cancelled_in_the_same_turn_is_dropped(waiters: EventWaiters) -> None:
    waiter = waiters.register("s", EVERYTHING)
    answer = asyncio.ensure_future(waiter.wait(0, 1.0))
    answer.cancel()
    waiters.appended("s", events([1]))
    assert answer.cancelled()
    assert len(waiters) == 0


async def test_each_waiter_is_given_payloads_of_its_own(waiters: EventWaiters) -> None:
    answers = [waiters.register("s", EVERYTHING).wait(0, 1.0) for _ in range(2)]
    appended = events([1], data={"deep": [1]})
    waiters.appended("s", appended)
    first, second = [await answer for answer in answers]
    assert first is not None
    assert second is not None
    first[0].data["deep"].append(2)
    assert second[0].data == appended[0].data == {"deep": [1]}


# -- waiting for a session's runs


@pytest.fixture
async def revisions(clock: JumpingClock) -> RevisionWaiters:
    return RevisionWaiters(clock)


async def test_a_revision_past_the_one_known_answers(revisions: RevisionWaiters) -> None:
    answer = asyncio.ensure_future(revisions.register("s").wait(3, after=5, deadline=None))
    revisions.changed("s", 5)
    await asyncio.sleep(0)
    assert not answer.done()
    revisions.changed("s", 6)
    assert await answer == 6
    assert len(revisions) == 0


async def test_a_revision_that_changed_during_the_read_answers_at_once(revisions: RevisionWaiters) -> None:
    waiter = revisions.register("s")
    revisions.changed("s", 6)
    assert await waiter.wait(5, after=5, deadline=None) == 6


async def test_a_change_of_unknown_revision_makes_waiters_and_readers_read_again(
    revisions: RevisionWaiters,
) -> None:
    parked = revisions.register("s").wait(5, after=5, deadline=None)
    reading = revisions.register("s")
    revisions.changed("s")
    assert await parked is None
    assert await reading.wait(5, after=5, deadline=None) is None


async def test_timeout_deletion_and_stop_answer_with_the_last_revision_known(
    revisions: RevisionWaiters, clock: JumpingClock
) -> None:
    timed = revisions.register("timed").wait(1, after=9, deadline=1.0)
    deleted = revisions.register("deleted").wait(2, after=9, deadline=None)
    reading = revisions.register("stopped")
    revisions.changed("timed", 4)
    await clock.advance_ms(1000)
    assert await timed == 4
    revisions.deleted("deleted")
    assert await deleted == 2
    revisions.stop()
    assert await reading.wait(3, after=9, deadline=None) == 3


# -- what it costs


class _Gauge(Observer):
    def __init__(self) -> None:
        self.parked = 0

    def waiters_changed(self, change: int) -> None:
        self.parked += change


@pytest.fixture
async def gauge() -> AsyncIterator[_Gauge]:
    gauge = _Gauge()
    before = set_observer(gauge)
    yield gauge
    set_observer(before)


async def test_the_observer_counts_who_is_parked(waiters: EventWaiters, gauge: _Gauge) -> None:
    reading = waiters.register("s", EVERYTHING)
    assert gauge.parked == 0
    cancelled = waiters.register("s", EVERYTHING)
    for waiter in (reading, cancelled, waiters.register("s", EVERYTHING)):
        waiter.wait(0, 1.0)
    assert gauge.parked == 3
    cancelled.cancel()
    assert gauge.parked == 2
    waiters.appended("s", events([1]))
    assert gauge.parked == 0


async def test_a_parked_waiter_is_small() -> None:
    waiters, revisions, count = EventWaiters(SystemClock()), RevisionWaiters(SystemClock()), 2_000
    sessions = [f"session {number}" for number in range(count)]
    deadline = SystemClock().monotonic() + 3600

    def bytes_each(park: Callable[[str], Awaitable[Any]]) -> tuple[float, list[Awaitable[Any]]]:
        gc.collect()
        tracemalloc.start()
        parked = [park(session) for session in sessions]
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return size / count, parked

    def park_for_runs(session: str) -> Awaitable[int | None]:
        return revisions.register(session).wait(0, after=0, deadline=None)

    def park_for_events(session: str) -> Awaitable[list[Event] | None]:
        return waiters.register(session, EVERYTHING).wait(0, deadline)

    # Measured on CPython 3.11: 290 and 563 bytes, of which the reply is 120 and the timer 250.
    for_runs, runs = bytes_each(park_for_runs)
    for_events, answers = bytes_each(park_for_events)
    assert for_runs < 400
    assert for_events < 700
    waiters.stop()
    revisions.stop()
    await asyncio.gather(*runs, *answers)


# -- many who wait, and much that comes

MANY = 1000


async def told(waiters: EventWaiters) -> int:
    """Let the loop turn until everybody has been told; how often it had to."""
    turns = 0
    while waiters._queue:
        await asyncio.sleep(0)
        turns += 1
    return turns


def waiting(waiters: EventWaiters, count: int, **filter: Any) -> list[asyncio.Future[list[Event] | None]]:
    registered = [waiters.register("s", EventFilter.checked(**filter)) for _ in range(count)]
    return [asyncio.ensure_future(waiter.wait(0, 1.0)) for waiter in registered]


async def test_many_are_told_in_turns_of_the_loop_and_each_gets_payloads_of_its_own(
    waiters: EventWaiters,
) -> None:
    answers = waiting(waiters, 300)
    given = events([1, 2], data={"list": []})
    waiters.appended("s", given)
    given[0].data["list"].append(1)  # whoever appended them may do that now
    assert sum(answer.done() for answer in answers) == TOLD_AT_ONCE
    assert await told(waiters) >= 3
    for answer in answers:
        found = await answer
        assert found is not None
        assert [event.data for event in found] == [{"list": []}, {"list": []}]
        found[0].data["list"].append(2)
    assert len(waiters) == 0


async def test_what_comes_while_others_are_told_is_missed_by_nobody(waiters: EventWaiters) -> None:
    answers = waiting(waiters, 100, run_id="a") + waiting(waiters, 100)
    waiters.appended("s", events([1], run_id="b"))
    waiters.appended("s", events([2], run_id="a"))
    waiters.appended("s", events([3], run_id="a"))
    await told(waiters)
    found = [await answer for answer in answers]
    # The first were told of each; the later ones only of the first, and look for themselves.
    assert {str(numbers(one)) for one in found[:100]} == {"[2]", "None"}
    assert [numbers(one) for one in found[100:]] == [[1]] * 100


async def test_a_reader_learns_of_what_came_while_others_were_told(waiters: EventWaiters) -> None:
    crowd = waiting(waiters, MANY)
    reader = waiters.register("s", EVERYTHING)
    waiters.appended("s", events([1]))
    waiters.appended("s", events([2]))
    await told(waiters)
    assert await reader.wait(1, 1.0) is None  # its read has seen the first and not the second
    assert [numbers(await answer) for answer in crowd] == [[1]] * MANY


async def test_no_turn_of_the_loop_tells_more_than_a_few_whatever_happened(
    waiters: EventWaiters, revisions: RevisionWaiters, clock: JumpingClock
) -> None:
    """Deletion, changes by others, the deadline and the stop, each with a thousand who wait."""

    def of_sessions() -> list[asyncio.Future[Any]]:
        registered = [waiters.register(f"s{number}", EVERYTHING) for number in range(MANY)]
        return [asyncio.ensure_future(waiter.wait(0, 1.0)) for waiter in registered]

    def of_runs() -> list[asyncio.Future[Any]]:
        registered = [revisions.register("s") for _ in range(MANY)]
        return [
            asyncio.ensure_future(waiter.wait(1, after=1, deadline=clock.monotonic() + 1))
            for waiter in registered
        ]

    def appended_to_each() -> None:
        for number in range(MANY):
            waiters.appended(f"s{number}", events([1], session_id=f"s{number}"))

    causes: list[tuple[Callable[[], list[asyncio.Future[Any]]], Callable[[], None], Any]] = [
        (lambda: waiting(waiters, MANY), lambda: waiters.changed("s"), None),
        (lambda: waiting(waiters, MANY), lambda: waiters.deleted("s"), []),
        (of_sessions, appended_to_each, [1]),
        (of_runs, lambda: revisions.changed("s", 2), 2),
        (of_runs, lambda: revisions.changed("s"), None),
        (of_runs, lambda: revisions.deleted("s"), 1),
        (of_sessions, waiters.stop, []),
        (of_runs, revisions.stop, 1),
    ]
    for wait, happen, answer in causes:
        answers, order = wait(), list[asyncio.Future[Any]]()
        for each in answers:
            each.add_done_callback(order.append)
        happen()
        most = sum(each.done() for each in answers)
        assert 1 <= most <= TOLD_AT_ONCE  # fewer on a busy machine
        while not all(each.done() for each in answers):
            before = sum(each.done() for each in answers)
            await asyncio.sleep(0)
            most = max(most, sum(each.done() for each in answers) - before)
        assert most <= TOLD_AT_ONCE
        found = await asyncio.gather(*answers)
        assert [one if isinstance(one, int) else numbers(one) for one in found] == [answer] * MANY
        assert order == answers  # who came first was told first
    assert (len(waiters), len(revisions), clock.timers) == (0, 0, 0)


async def test_a_thousand_deadlines_at_one_moment_end_in_turns_of_the_loop(
    waiters: EventWaiters, clock: JumpingClock
) -> None:
    answers = waiting(waiters, MANY)
    done: list[int] = []

    async def watch() -> None:
        while len(waiters):
            done.append(sum(answer.done() for answer in answers))
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    await clock.advance_ms(1000)
    await watching
    assert max(later - before for before, later in pairwise(done)) <= TOLD_AT_ONCE
    assert [await answer for answer in answers] == [[]] * MANY


async def test_who_takes_long_to_be_told_leaves_the_others_for_the_next_turns(
    waiters: EventWaiters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "STRETCH_SECONDS", 0)
    answers = waiting(waiters, 5)
    waiters.appended("s", events([1]))
    done = [sum(answer.done() for answer in answers)]
    while waiters._queue:
        await asyncio.sleep(0)
        done.append(sum(answer.done() for answer in answers))
    assert done == [1, 2, 3, 4, 5]


async def test_who_is_about_to_be_told_may_leave(waiters: EventWaiters) -> None:
    registered = [waiters.register("s", EVERYTHING) for _ in range(100)]
    answers = [asyncio.ensure_future(waiter.wait(0, 1.0)) for waiter in registered]
    waiters.appended("s", events([1]))
    registered[99].cancel()
    answers[98].cancel()
    await told(waiters)
    assert not answers[99].done()
    assert [numbers(await answer) for answer in answers[:98]] == [[1]] * 98
    answers[99].cancel()


async def test_a_deletion_ends_who_has_not_been_told_yet(waiters: EventWaiters) -> None:
    answers = waiting(waiters, 100)
    waiters.appended("s", events([1]))
    waiters.deleted("s")
    await told(waiters)
    assert [numbers(await answer) for answer in answers[64:]] == [[]] * 36


@pytest.mark.parametrize(
    "batch",
    [
        events(range(1, IN_HAND + 2)),
        events([1, 2, 3], data={"text": "x" * (BYTES_IN_HAND // 2)}),
    ],
    ids=["many", "large"],
)
async def test_what_is_too_much_to_hold_is_read_from_the_store(
    waiters: EventWaiters, batch: list[Event]
) -> None:
    answers = waiting(waiters, 3)
    waiters.appended("s", batch)
    await told(waiters)
    assert [await answer for answer in answers] == [None] * 3


async def test_as_much_as_may_be_is_handed_over(waiters: EventWaiters) -> None:
    (answer,) = waiting(waiters, 1)
    batch = events(range(1, IN_HAND + 1))
    waiters.appended("s", batch)
    assert await answer == batch


async def test_a_picked_batch_is_what_the_filter_picks(waiters: EventWaiters) -> None:
    batch = [
        event.replace(run_id="ab"[index % 2], timestamp=NOON + timedelta(seconds=index))
        for index, event in enumerate(events(range(1, 9)))
    ]
    filters: list[dict[str, Any]] = [
        {"run_id": "a"},
        {"run_id": "a", "limit": 2},
        {"order": "desc", "limit": 3},
        {"since": NOON + timedelta(seconds=3), "order": "desc"},
        {"max_bytes": 500},
        {"max_bytes": 1, "order": "desc"},
        {"before": 3},
    ]
    for filter in filters:
        (answer,) = waiting(waiters, 1, **filter)
        waiters.appended("s", batch)
        assert await answer == EventFilter.checked(**filter).pick(batch) != []
