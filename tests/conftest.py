"""For every test: which event loops it meets, and that code of ours does not block them.

A test module marked `every_loop` runs on all that there are, the others on asyncio's own. With
`--event-loop` they run on those that it names.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx

pytest.register_assert_rewrite("asm_runtime.testing.store_case")  # whoever imports it first

from tests.loops import LoopFactory, chosen_loops, loop_factories  # noqa: E402

pytest_plugins = ["tests.postgres"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--event-loop",
        action="append",
        choices=list(loop_factories()),
        help="run asynchronous tests on this event loop; may be given several times",
    )


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, LoopFactory]:
    """The loops of one test."""
    everywhere = item.get_closest_marker("every_loop") is not None
    return chosen_loops(config, *(loop_factories() if everywhere else ["asyncio"]))


# In the background (`make test &`, `nohup`) the suite is started with signals ignored, and what is ignored
# stays so in every program that it starts; a handler does not.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda number, frame: None)


@pytest.fixture(autouse=True)
def nothing_of_ours_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx("asm_runtime") as detector:
        for function in detector.functions.values():
            # asyncpg looks for password files and certificates, small ones, whenever it connects.
            function.can_block_in("asyncpg/connect_utils.py", "_parse_connect_arguments")
        yield
