"""For every test: code of ours that blocks the event loop fails it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx


@pytest.fixture(autouse=True)
def nothing_of_ours_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx("asm_runtime"):
        yield
