"""What drives providers. A driver with heavy imports lives in a module of its own and is imported there."""

from asm_runtime.adapters.scripted import ScriptedAdapter

__all__ = ["ScriptedAdapter"]
