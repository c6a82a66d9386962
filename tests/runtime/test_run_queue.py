"""A server's view of its session's queue."""

from __future__ import annotations

from typing import Any

from asm_runtime import Event, Run
from asm_runtime.runtime.run_queue import MOST_REMEMBERED, RunQueue, Submission


def run_of(run_id: str, input: Any = None) -> Run:
    return Run.new(session_id="ses", id=run_id, input=input)


def submitted(queue: RunQueue, run_id: str) -> bool:
    return queue.accepted(queue.submitting(run_of(run_id), ()))


def counted(queue: RunQueue, *pending: str, resting: tuple[str, ...] = ()) -> list[Submission]:
    queue.saw(pending)
    return queue.counted(resting)


def callback(event: Event) -> None:
    return None


def other_callback(event: Event) -> None:
    return None


def test_it_keeps_the_order_of_submission() -> None:
    queue = RunQueue()
    for run_id in ("a", "b", "c"):
        assert submitted(queue, run_id)
    waited, submission = queue.left(run_of("a"))
    assert waited
    assert submission is not None
    assert queue.run_ids() == ["b", "c"]
    assert queue.has_own


def test_a_run_claimed_before_its_submitter_hears_of_it_does_not_wait() -> None:
    queue = RunQueue()
    submission = queue.submitting(run_of("a"), [callback])
    assert queue.left(run_of("a")) == (False, submission)
    assert not queue.accepted(submission)
    assert queue.run_ids() == []
    assert not queue.has_own


def test_a_submission_under_way_counts_as_own() -> None:
    queue = RunQueue()
    submission = queue.submitting(run_of("a"), ())
    assert queue.has_own
    queue.refused(submission)
    queue.refused(submission)
    assert not queue.has_own


def test_a_recount_takes_what_others_did_and_keeps_what_happened_since() -> None:
    queue = RunQueue()
    for run_id in ("mine", "taken", "kept"):
        submitted(queue, run_id)
    queue.count()
    queue.left(run_of("mine"))
    submitted(queue, "new")
    gone = counted(queue, "mine", "foreign", "kept")
    assert len(gone) == 1
    assert queue.run_ids() == ["foreign", "kept", "new"]
    assert [queue.left(run_of(run_id))[1] is None for run_id in ("taken", "kept", "new")] == [
        True,
        False,
        False,
    ]


def test_a_recount_that_fails_changes_nothing() -> None:
    queue = RunQueue()
    submitted(queue, "a")
    queue.count()
    queue.saw(["b"])
    queue.stop_counting()
    assert queue.counted() == []
    assert (queue.run_ids(), queue.has_own) == (["a"], True)


def test_submitting_a_waiting_run_again_changes_nothing() -> None:
    queue = RunQueue()
    first = queue.submitting(run_of("a"), [callback])
    assert queue.accepted(first)
    again = queue.submitting(run_of("a"), [other_callback])
    assert not queue.accepted(again)
    refused = queue.submitting(run_of("a", "other input"), [other_callback])
    queue.refused(refused)
    assert queue.run_ids() == ["a"]
    assert queue.left(run_of("a"))[1] is first
    assert not queue.has_own


def test_of_two_submissions_under_way_the_one_with_the_runs_input_is_its_own() -> None:
    queue = RunQueue()
    other = queue.submitting(run_of("a", "other input"), [other_callback])
    right = queue.submitting(run_of("a", "input"), [callback])
    again = queue.submitting(run_of("a", "input"), [other_callback])
    assert queue.left(run_of("a", "input"))[1] is right
    queue.refused(other)
    assert not queue.accepted(right)
    assert not queue.accepted(again)
    assert (queue.run_ids(), queue.has_own) == ([], False)


def test_the_first_that_is_answered_is_the_runs_own() -> None:
    queue = RunQueue()
    slow = queue.submitting(run_of("a"), [callback])
    quick = queue.submitting(run_of("a"), [other_callback])
    assert queue.accepted(quick)
    assert not queue.accepted(slow)
    assert queue.left(run_of("a"))[1] is quick


def test_a_run_that_a_recount_saw_before_its_submitter_is_its_own() -> None:
    queue = RunQueue()
    submission = queue.submitting(run_of("a"), ())
    queue.count()
    counted(queue, "a")
    assert queue.accepted(submission)
    assert (queue.run_ids(), queue.has_own) == (["a"], True)
    queue.left(run_of("a"))
    assert not queue.has_own


def test_a_run_whose_attempt_was_lost_stays_its_submitters() -> None:
    queue = RunQueue()
    submission = queue.submitting(run_of("a"), [callback])
    queue.accepted(submission)
    queue.left(run_of("a"))
    queue.count()
    queue.returned("a", submission)
    assert counted(queue) == []  # it came back while the queue was counted
    assert queue.has_own
    queue.count()
    assert counted(queue, resting=("a",)) == []  # an orphan that waits for its next attempt
    queue.count()
    assert counted(queue, "a") == []
    assert queue.left(run_of("a")) == (True, submission)
    queue.returned("a", submission)
    queue.count()
    assert counted(queue) == [submission]
    assert not queue.has_own


def test_what_leaves_during_a_recount_that_never_ends_is_not_collected() -> None:
    queue = RunQueue()
    queue.count()
    for number in range(MOST_REMEMBERED + 1):
        queue.left(run_of(f"run {number}"))
    assert queue._left is None
    assert counted(queue, "run 0") == []
    assert queue.run_ids() == []


def test_what_leaves_while_a_submission_hangs_is_not_collected() -> None:
    queue = RunQueue()
    queue.submitting(run_of("hung"), ())
    for number in range(10):
        submitted(queue, f"run {number}")
        queue.left(run_of(f"run {number}"))
    assert queue._left is None
    assert list(queue._submissions or ()) == ["hung"]


def test_clearing_it_names_what_waited() -> None:
    queue = RunQueue()
    waiting = queue.submitting(run_of("a"), ())
    queue.accepted(waiting)
    hung = queue.submitting(run_of("b"), ())
    assert list(queue.clear()) == [waiting]
    queue.refused(hung)
    assert (len(queue), queue.has_own) == (0, False)


class NotGoneThrough(dict[str, Any]):
    """Looks up, and is not iterated over."""

    def __iter__(self) -> Any:
        raise AssertionError("all that waits is gone through")

    keys = items = values = __iter__


def test_the_end_of_a_recount_does_not_go_through_the_queue() -> None:
    queue = RunQueue()
    for run_id in ("a", "b", "c"):
        submitted(queue, run_id)
    queue.count()
    queue.saw(["a", "foreign"])
    queue._pending = NotGoneThrough(queue._pending)
    queue._submissions = NotGoneThrough(queue._submissions or {})
    queue.saw(["c"])
    assert [len(queue.counted()), queue.run_ids()] == [1, ["a", "foreign", "c"]]
