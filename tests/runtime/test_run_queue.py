"""A server's view of its session's queue."""

from __future__ import annotations

from asm_runtime.run_queue import RunQueue


def submitted(queue: RunQueue, run_id: str) -> bool:
    queue.submitting()
    return queue.submitted(run_id)


def test_it_keeps_the_order_of_submission() -> None:
    queue = RunQueue()
    for run_id in ("a", "b", "c"):
        assert submitted(queue, run_id)
    assert queue.left("a")
    assert queue.run_ids() == ["b", "c"]
    assert queue.has_own


def test_a_run_claimed_before_its_submitter_hears_of_it_does_not_wait() -> None:
    queue = RunQueue()
    queue.submitting()
    assert not queue.left("a")
    assert not queue.submitted("a")
    assert queue.run_ids() == []
    assert not queue.has_own


def test_a_submission_under_way_counts_as_own() -> None:
    queue = RunQueue()
    queue.submitting()
    assert queue.has_own
    queue.submitted(None)
    assert not queue.has_own


def test_a_recount_takes_what_others_did_and_keeps_what_happened_since() -> None:
    queue = RunQueue()
    for run_id in ("mine", "taken", "kept"):
        submitted(queue, run_id)
    queue.mark()
    queue.left("mine")
    submitted(queue, "new")
    gone = queue.recount(["mine", "foreign", "kept"])
    assert gone == {"taken"}
    assert queue.run_ids() == ["foreign", "kept", "new"]


def test_submitting_a_waiting_run_again_changes_nothing() -> None:
    queue = RunQueue()
    assert submitted(queue, "a")
    assert not submitted(queue, "a")
    assert queue.run_ids() == ["a"]


def test_a_run_that_a_recount_saw_before_its_submitter_is_its_own() -> None:
    queue = RunQueue()
    queue.submitting()
    queue.mark()
    queue.recount(["a"])
    assert queue.submitted("a")
    assert (queue.run_ids(), queue.has_own) == (["a"], True)
    queue.left("a")
    assert not queue.has_own
