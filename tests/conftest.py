"""For every test: which event loops it meets, and that code of ours does not block them.

A test module marked `every_loop` runs on all that there are. The others run on asyncio's own loop, or
on the one that the environment variable `ASM_TEST_LOOP` names: `asyncio`, `uvloop` or `eager`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx

from tests.loops import LoopFactory, loop_factories


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, LoopFactory]:
    """The loops of one test."""
    factories = loop_factories()
    if item.get_closest_marker("every_loop") is not None:
        return factories
    name = os.environ.get("ASM_TEST_LOOP", "asyncio")
    if name not in factories:
        raise pytest.UsageError(f"ASM_TEST_LOOP={name}: this Python has {', '.join(factories)}")
    return {name: factories[name]}


# In the background (`make test &`, `nohup`) the suite is started with signals ignored, and what is ignored
# stays so in every program that it starts; a handler does not.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda number, frame: None)


@pytest.fixture(autouse=True)
def nothing_of_ours_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx("asm_runtime"):
        yield
