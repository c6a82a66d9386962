"""What the demo claims, held against the log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import msgspec

from asm_runtime.cli.demo.plan import LIBRARY, SLOTS, SUBSCRIBED, PlannedRun
from asm_runtime.cli.log import stored
from asm_runtime.ports import SessionStore
from asm_runtime.records import Event, EventType, Run, RunStatus

__all__ = ["Witness", "checked"]

TAKEOVER_LIMIT_MS = 1_000


class Witness(msgspec.Struct, kw_only=True):
    """What was seen from outside while it happened."""

    seen: dict[str, list[int]]
    """The numbers that the live view was given, by session."""
    subscriber_saw: list[int]
    left_at: int
    """The cursor at which the subscriber left."""
    interrupted: set[tuple[str, str]]
    """The runs (session, run) that were in flight when their process was killed."""
    takeover_ms: float
    """From the kill to the first event of the second process, as the live view saw it."""


async def checked(
    store: SessionStore, planned: Mapping[str, Sequence[PlannedRun]], witness: Witness
) -> list[tuple[bool, str]]:
    """Each claim: whether it holds, and in words with its numbers."""
    logs = {
        session_id: [event async for page in stored(store, session_id) for event in page]
        for session_id in planned
    }
    runs = {session_id: await store.list_runs(session_id) for session_id in planned}
    return [
        _numbers_have_no_gap(logs),
        _every_run_ended_once(planned, logs, runs),
        _slots_were_kept(logs),
        _interrupted_runs_ran_again(runs, witness),
        (
            witness.takeover_ms < TAKEOVER_LIMIT_MS,
            f"the second process carried on {witness.takeover_ms:.0f} ms after kill -9",
        ),
        _view_saw_all(logs, witness),
        _subscriber_saw_all(logs, witness),
        _output_is_true(planned, logs),
    ]


def _numbers_have_no_gap(logs: Mapping[str, list[Event]]) -> tuple[bool, str]:
    total = sum(len(log) for log in logs.values())
    passed = all(_numbers(log) == list(range(1, len(log) + 1)) for log in logs.values())
    return passed, f"{total} events in {len(logs)} logs, numbered 1, 2, 3 … without a gap"


def _every_run_ended_once(
    planned: Mapping[str, Sequence[PlannedRun]],
    logs: Mapping[str, list[Event]],
    runs: Mapping[str, list[Run]],
) -> tuple[bool, str]:
    wanted = [(session_id, run.run_id) for session_id in planned for run in planned[session_id]]
    completed = [
        (run.session_id, run.id) for of in runs.values() for run in of if run.status is RunStatus.COMPLETED
    ]
    ends = [
        (event.session_id, str(event.run_id)) for log in logs.values() for event in log if event.is_terminal
    ]
    passed = sorted(wanted) == sorted(completed) == sorted(ends)
    return passed, (
        f"{len(wanted)} runs submitted, {len(completed)} completed, {len(ends)} terminal events: one a run"
    )


def _slots_were_kept(logs: Mapping[str, list[Event]]) -> tuple[bool, str]:
    most = 0
    for log in logs.values():
        running: set[str | None] = set()
        for event in log:
            if event.type is EventType.RUN_STARTED:
                running.add(event.run_id)
                most = max(most, len(running))
            elif event.is_terminal:
                running.discard(event.run_id)
    return most <= SLOTS, f"never more than {most} runs of a session at once, through {SLOTS} slots"


def _interrupted_runs_ran_again(runs: Mapping[str, list[Run]], witness: Witness) -> tuple[bool, str]:
    again = {(run.session_id, run.id) for of in runs.values() for run in of if run.attempt == 2}
    others_once = all(
        run.attempt == 1 for of in runs.values() for run in of if (run.session_id, run.id) not in again
    )
    passed = bool(again) and again == witness.interrupted and others_once
    return passed, (
        f"{len(witness.interrupted)} runs were in flight at the kill, {len(again)} were executed again"
    )


def _view_saw_all(logs: Mapping[str, list[Event]], witness: Witness) -> tuple[bool, str]:
    passed = all(witness.seen[session_id] == _numbers(log) for session_id, log in logs.items())
    shown = sum(len(numbers) for numbers in witness.seen.values())
    return passed, f"the live view, a third process, was given {shown} events, each once, in order"


def _subscriber_saw_all(logs: Mapping[str, list[Event]], witness: Witness) -> tuple[bool, str]:
    numbers = _numbers(logs[SUBSCRIBED])
    return witness.subscriber_saw == numbers and 0 < witness.left_at < len(numbers), (
        f"the subscriber of {SUBSCRIBED} left at {witness.left_at}, came back after the kill and saw "
        f"{len(witness.subscriber_saw)} of {len(numbers)}: no gap, no repeat"
    )


def _output_is_true(
    planned: Mapping[str, Sequence[PlannedRun]], logs: Mapping[str, list[Event]]
) -> tuple[bool, str]:
    """The last attempt of every run printed a line for each file; `wc` is recounted here."""
    lines = 0
    passed = True
    for session_id, runs in planned.items():
        printed = _output_of_last_attempts(logs[session_id])
        for run in runs:
            output = printed[run.run_id]
            lines += len(output)
            passed &= len(output) == len(run.files)
            if session_id == "counter":
                counted = [(LIBRARY / file).read_bytes().count(b"\n") for file in run.files]
                passed &= [int(line.split()[0]) for line in output] == counted
    return passed, f"{lines} lines of output stored, as many as the commands print, and the counts are true"


def _output_of_last_attempts(log: list[Event]) -> dict[str, list[str]]:
    printed: dict[str, list[str]] = defaultdict(list)
    for event in log:
        if event.type is EventType.RUN_STARTED:
            printed[str(event.run_id)] = []
        elif event.type is EventType.MESSAGE_STREAMED:
            printed[str(event.run_id)] += str(event.data["content"]).split("\n")
    return printed


def _numbers(log: Sequence[Event]) -> list[int | None]:
    return [event.sequence_number for event in log]
