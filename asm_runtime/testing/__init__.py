"""What tests of this library, and of what is built on it, stand on.

`asm_runtime.testing.store_conformance` and `asm_runtime.testing.artifact_conformance` hold the suites
that every store passes; they need pytest, so they are imported by their own names.
"""

from asm_runtime.adapters.scripted import ScriptedAdapter
from asm_runtime.testing.clock import JumpingClock

__all__ = ["JumpingClock", "ScriptedAdapter"]
