from __future__ import annotations

import time

import pytest
from blockbuster import BlockingError

from asm_runtime.actor import Actor


async def test_a_handler_that_blocks_the_loop_fails_its_test() -> None:
    async with Actor() as actor:
        with pytest.raises(BlockingError):
            await actor.call(time.sleep, 0.001)
