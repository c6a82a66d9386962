"""What tests of this library, and of what is built on it, stand on.

`asm_runtime.testing.store_conformance` holds the suite that every store passes; it needs pytest, so
it is imported by its own name.
"""

from asm_runtime.adapters.scripted import ScriptedAdapter
from asm_runtime.testing.clock import JumpingClock

__all__ = ["JumpingClock", "ScriptedAdapter"]
