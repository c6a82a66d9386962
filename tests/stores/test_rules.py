from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asm_runtime.errors import Conflict, InvalidTransition, LeaseLost, QueueFull, ValidationError
from asm_runtime.ports import ExecutionResult
from asm_runtime.records import Event, Fence, Run, RunStatus, Session, SessionStatus
from asm_runtime.stores import rules

SESSION = Session.new(agent_id="a", id="s", status="active")
RUN = Run.new(session_id="s", id="r", input={"a": 1, "b": [1.0, True]})


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ([{"a": 1, "b": 2}], [{"b": 2, "a": 1}], True),
        (1, 1.0, False),
        (1, True, False),
        (0, False, False),
        ({"a": None}, {}, False),
        ([1, 2], [2, 1], False),
        (None, {}, False),
        ("1", 1, False),
    ],
)
def test_json_values_are_compared_exactly(one: Any, other: Any, same: bool) -> None:
    assert rules.same_json(one, other) is same


def test_an_expected_status_is_held_against_the_stored_one() -> None:
    rules.check_expected_status(RUN, "running", None)
    rules.check_expected_status(RUN, "running", "running")
    rules.check_expected_status(RUN, None, "absent")
    for stored, expected in (("running", "pending"), ("running", "absent"), (None, "running")):
        with pytest.raises(Conflict, match="run r is"):
            rules.check_expected_status(RUN, stored, expected)


def test_a_terminal_status_is_kept_and_the_error_names_both() -> None:
    rules.check_status_kept(RUN, None)
    rules.check_status_kept(RUN, RunStatus.RUNNING)
    rules.check_status_kept(RUN.replace(status=RunStatus.FAILED), RunStatus.FAILED)
    with pytest.raises(InvalidTransition) as refused:
        rules.check_status_kept(SESSION, SessionStatus.FAILED)
    assert (refused.value.from_status, refused.value.to_status) == ("failed", "active")


def test_only_becoming_completed_asks_for_the_open_runs() -> None:
    completed = SESSION.replace(status=SessionStatus.COMPLETED)
    rules.check_completion(completed, SessionStatus.ACTIVE, 0)
    rules.check_completion(completed, SessionStatus.COMPLETED, 1)
    rules.check_completion(SESSION, None, 1)
    for stored in (SessionStatus.ACTIVE, None):
        with pytest.raises(Conflict, match="1 open runs"):
            rules.check_completion(completed, stored, 1)


def test_the_queue_decides_in_order_same_run_then_session_then_room() -> None:
    failed = SessionStatus.FAILED
    assert rules.check_enqueue(RUN, None, None, 5, None) is None
    assert rules.check_enqueue(RUN, None, SessionStatus.PAUSED, 4, 5) is None
    assert rules.check_enqueue(RUN, RUN, failed, 5, 5) is RUN
    with pytest.raises(Conflict):
        rules.check_enqueue(RUN.replace(input={}), RUN, failed, 5, 5)
    with pytest.raises(InvalidTransition) as refused:
        rules.check_enqueue(RUN, None, failed, 5, 5)
    assert (refused.value.from_status, refused.value.to_status) == ("failed", None)
    with pytest.raises(QueueFull):
        rules.check_enqueue(RUN, None, SessionStatus.ACTIVE, 5, 5)


def test_a_fence_holds_only_for_its_attempt_while_that_runs() -> None:
    fence = Fence("s", "r", 2)
    rules.check_fence(None, None, 0)
    rules.check_fence(fence, "running", 2)
    stored: tuple[str | None, int]
    for stored in (("running", 3), ("pending", 2), ("completed", 2), (None, 0)):
        with pytest.raises(LeaseLost, match="not running in attempt 2"):
            rules.check_fence(fence, *stored)


@pytest.mark.parametrize(
    "check",
    [
        lambda: rules.checked("session", RUN, Session),
        lambda: rules.checked("session", None, Session),
        lambda: rules.checked("event", {"id": "e"}, Event),
        lambda: asyncio.run(rules.checked_events("events", None)),
        lambda: asyncio.run(rules.checked_events("events", "ab")),
        lambda: asyncio.run(rules.checked_events("events", [None])),
        lambda: asyncio.run(rules.checked_events("events", Event.new(type="custom", session_id="s"))),
        lambda: asyncio.run(rules.checked_pending(RUN.with_status("running"))),
        lambda: rules.checked_fence(None),
        lambda: rules.optional_fence(("s", "r", 1)),
        lambda: rules.checked_fence(Fence("s", "r", -1)),
        lambda: rules.checked_fence(Fence("s", "", 1)),
        lambda: rules.checked_fence(Fence("s", "r", True)),
        lambda: rules.expected_session_status("expected_status", "running"),
        lambda: rules.expected_run_status("expected_status", "active"),
        lambda: rules.expected_run_status("expected_status", []),
        lambda: rules.expected_run_status("expected_status", ""),
        lambda: asyncio.run(rules.checked_result({}, None, None)),
        lambda: asyncio.run(rules.checked_result(ExecutionResult(run=RUN), "active", None)),
        lambda: asyncio.run(rules.checked_result(ExecutionResult(session=SESSION), None, "running")),
        lambda: asyncio.run(rules.checked_result(ExecutionResult(events=None), None, None)),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_argument_is_refused(check: Any) -> None:
    with pytest.raises(ValidationError):
        check()
