"""What drives providers. A driver with heavy imports lives in a module of its own and is imported there."""

from asm_runtime.adapters.scripted import ScriptedAdapter
from asm_runtime.adapters.shell import ShellAdapter

__all__ = ["ScriptedAdapter", "ShellAdapter"]
