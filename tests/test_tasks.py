from __future__ import annotations

import contextvars

import pytest

from asm_runtime.tasks import start_task

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
