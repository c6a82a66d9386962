from __future__ import annotations

import asyncio
import contextvars

import pytest

from asm_runtime.tasks import FEW, few_a_turn, start_task

pytestmark = pytest.mark.every_loop


async def test_a_task_begins_in_a_turn_of_its_own() -> None:
    log: list[str] = []

    async def work() -> str:
        log.append("begun")
        return "done"

    task = start_task(work(), name="mine")
    log.append("known")
    assert await task == "done"
    assert log == ["known", "begun"]
    assert task.get_name() == "mine"


async def test_a_task_may_run_in_the_context_that_is_current() -> None:
    variable = contextvars.ContextVar("variable", default="")

    async def work() -> None:
        variable.set("by the task")

    own = contextvars.copy_context()
    await own.run(lambda: start_task(work(), context=own))
    assert own[variable] == "by the task"


@pytest.mark.parametrize("count", [0, 1, FEW, FEW + 1, 5 * FEW])
async def test_a_crowd_is_told_a_few_a_turn(count: int) -> None:
    told: list[int] = []
    few_a_turn(told.append, range(count))
    assert told == list(range(min(FEW, count)))
    while len(told) < count:
        before = len(told)
        await asyncio.sleep(0)
        assert len(told) - before <= FEW
    await asyncio.sleep(0)
    assert told == list(range(count))
