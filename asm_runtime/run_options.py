"""The options of a run: the keyword arguments of every call that accepts one."""

from asm_runtime.runtime.run_options import RunOptionArgs, RunOptions

__all__ = ["RunOptionArgs", "RunOptions"]
