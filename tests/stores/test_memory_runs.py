from __future__ import annotations

from random import Random

import pytest

from asm_runtime.records import Run, RunStatus
from asm_runtime.stores.memory_runs import RunQueue

STATUSES = [None, *([status] for status in RunStatus), [RunStatus.PENDING, RunStatus.RUNNING], []]


@pytest.mark.parametrize("seed", range(5))
def test_any_life_of_a_queue_leaves_what_a_plain_dict_of_its_runs_holds(seed: int) -> None:
    random, queue = Random(seed), RunQueue()
    model: dict[str, Run] = {}
    for _ in range(400):
        pending = [run for run in model.values() if run.status is RunStatus.PENDING]
        assert queue.first_pending() == (pending[0] if pending else None)
        act = random.random()
        if act < 0.3 or not model:
            run = Run.new(id=f"r{len(model)}", session_id="s")
        elif act < 0.6 and pending:
            run = pending[0].replace(status=RunStatus.RUNNING)  # the usual life: claimed in order,
        else:
            run = random.choice(list(model.values()))  # ended, cancelled, queued again in its old place
            run = run.replace(status=random.choice(list(RunStatus)))
        assert queue.put(run) == (run.id not in model)
        model[run.id] = run
        runs = list(model.values())
        assert queue.get(run.id) == run
        assert queue.running_count == sum(run.status is RunStatus.RUNNING for run in runs)
        assert queue.open_count == queue.running_count + len(
            [run for run in runs if run.status is RunStatus.PENDING]
        )
        statuses = random.choice(STATUSES)
        after = random.choice([None, *range(len(runs))])
        expected = runs[0 if after is None else after + 1 :]
        expected = [run for run in expected if statuses is None or run.status in statuses]
        found = queue.with_status(statuses, after=None if after is None else runs[after].id)
        assert list(found) == expected


def test_the_earliest_started_is_found_among_those_without_a_time() -> None:
    queue = RunQueue()
    assert queue.earliest_started() is None
    for id in "ab":
        queue.put(Run.new(id=id, session_id="s").replace(status=RunStatus.RUNNING))
    started = Run.new(id="c", session_id="s").with_status("running")
    queue.put(started)
    assert queue.earliest_started() == started
