"""The event loops that the runtime must work on, and which of them a test meets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def _eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]  # 3.12
    return loop


def loop_factories() -> dict[str, LoopFactory]:
    """By name: what this interpreter and platform have of them."""
    factories: dict[str, LoopFactory] = {"asyncio": asyncio.SelectorEventLoop}
    try:
        import uvloop
    except ImportError:
        pass
    else:
        factories["uvloop"] = uvloop.new_event_loop
    if hasattr(asyncio, "eager_task_factory"):
        factories["eager"] = _eager_loop
    return factories


def chosen_loops(config: pytest.Config, *otherwise: str) -> dict[str, LoopFactory]:
    """The loops that `--event-loop` names, or else those given."""
    factories = loop_factories()
    names: list[str] = config.getoption("--event-loop") or list(otherwise)
    return {name: factories[name] for name in names}


def run_on(loop: str, work: Coroutine[Any, Any, T]) -> T:
    """Like `asyncio.run`, on the loop of that name."""
    with asyncio.Runner(loop_factory=loop_factories()[loop]) as runner:
        return runner.run(work)
