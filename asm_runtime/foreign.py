"""What a port of somebody else's raises, made ours: callers handle `AsmError`, whoever wrote the store."""

from __future__ import annotations

from types import TracebackType

from asm_runtime.errors import AsmError, StoreError
from asm_runtime.payload import lossy

__all__ = ["store_errors", "translated"]


def translated(kind: type[AsmError], who: str, error: BaseException) -> AsmError:
    """What a foreign exception becomes. It may be one that cannot even say what it is."""
    name = type(error).__name__
    try:
        what = f"{name}: {lossy(str(error))}"
    except Exception:
        what = name
    made = kind(f"{who} raised {what}", details={"exception": name})
    made.__cause__ = error
    return made


class store_errors:
    """`with store_errors():` around a call of the store: what is no `AsmError` becomes a `StoreError`."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, AsmError):
            raise translated(StoreError, "the store", error) from error
