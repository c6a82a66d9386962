"""Identifiers that sort by the time they were made.

An id is a prefix and 32 hex digits: 48 bits of Unix milliseconds, 80 bits that start at random in
each millisecond and are counted up within it. So the ids that one process makes increase strictly
in text order, also when its clock is set back, and two processes do not meet.
Source: the layout is that of ULID (github.com/ulid/spec, "monotonicity"), in hex.
"""

from __future__ import annotations

import os
import threading
import time
from random import Random

__all__ = ["new_id"]

_RANDOM_BITS = 80
_MAX_STEP_BITS = 32


class _Sequence:
    """The last id made, and what makes the next one; one for the process."""

    def __init__(self) -> None:
        self.reseed()

    def reseed(self) -> None:
        """Start again; after a fork the child must not continue its parent's sequence."""
        self._lock = threading.Lock()
        self._random = Random(os.urandom(16))  # unguessable is not needed, unique is
        self._last = 0

    def next(self) -> int:
        fresh = (time.time_ns() // 1_000_000) << _RANDOM_BITS
        with self._lock:
            if fresh > self._last:
                # The top bit stays free, so that counting up does not spill into the milliseconds.
                self._last = fresh | self._random.getrandbits(_RANDOM_BITS - 1)
            else:
                self._last += 1 + self._random.getrandbits(_MAX_STEP_BITS)
            return self._last


_sequence = _Sequence()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_sequence.reseed)


def new_id(prefix: str) -> str:
    """A new id, for instance `new_id("run_")`. Safe in any thread."""
    return f"{prefix}{_sequence.next():032x}"
