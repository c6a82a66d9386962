"""The type of `SessionServer.subscribe`'s result, for annotations."""

from asm_runtime.runtime.subscription import Subscription

__all__ = ["Subscription"]
