"""The suite that shows whether a store keeps the contract of `asm_runtime.ports.SessionStore`.

It needs pytest and pytest-asyncio (`asyncio_mode = "auto"`). A store joins with a few lines::

    from asm_runtime.testing.store_conformance import SessionStoreConformance, SharedDataConformance

    class TestMyStore(SharedDataConformance, SessionStoreConformance):
        def new_store(self, clock, place):
            return MyStore(place / "my.db", clock=clock)

`place` is a directory of the test's own; two stores made for the same place share their data. For a
store that cannot share it there is nothing to test between two of them. It says so, and why::

    class TestMyPrivateStore(SessionStoreConformance):
        private = "lives in the memory of its process"

The suite waits for nothing in real time: a store must take its times and timers from `clock`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

for _part in ("case", "life", "records", "flush", "payloads", "log", "queue", "model", "shared"):
    pytest.register_assert_rewrite(f"asm_runtime.testing.store_{_part}")

from asm_runtime.testing.store_flush import FlushCase  # noqa: E402  the asserts are rewritten first
from asm_runtime.testing.store_life import LifeCase  # noqa: E402
from asm_runtime.testing.store_log import LogCase, LongPollCase  # noqa: E402
from asm_runtime.testing.store_model import (  # noqa: E402
    ModelCase,
    StoreModel,
    random_event,
    random_filter,
)
from asm_runtime.testing.store_payloads import PayloadsCase  # noqa: E402
from asm_runtime.testing.store_queue import QueueCase, RevisionCase  # noqa: E402
from asm_runtime.testing.store_records import RecordsCase  # noqa: E402
from asm_runtime.testing.store_shared import SharedDataConformance  # noqa: E402

__all__ = [
    "ModelCase",
    "SessionStoreConformance",
    "SharedDataConformance",
    "StoreModel",
    "random_event",
    "random_filter",
]


class SessionStoreConformance(
    LifeCase, RecordsCase, FlushCase, PayloadsCase, LogCase, LongPollCase, QueueCase, RevisionCase, ModelCase
):
    """What one opened store promises. To be subclassed, see the module."""

    def test_two_nodes_on_the_same_data_are_tested_or_the_store_says_why_not(
        self, record_property: Callable[[str, object], None]
    ) -> None:
        """No store passes for shared that was only tested alone."""
        assert isinstance(self, SharedDataConformance) == (self.private is None)
        record_property("private", self.private or "no")
