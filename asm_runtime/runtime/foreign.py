"""What code that is not ours raises, made ours: callers handle `AsmError`, whatever the store is.

An adapter, or a store of somebody else's, may raise anything: an exception that cannot even say
what it is, an `AsmError` whose fields were never set. What comes out of here can be stored, shown
and raised again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from types import TracebackType
from typing import Any, TypeVar

from asm_runtime.errors import AsmError, StoreError, StoreUnavailable
from asm_runtime.payload import lossy

__all__ = ["answered", "own", "store_errors", "translated"]

T = TypeVar("T")

MAX_CODE_LENGTH = 128


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


def own(kind: type[AsmError], who: str, error: BaseException) -> AsmError:
    """The error itself if it is a sound `AsmError`; else what it becomes."""
    return error if isinstance(error, AsmError) and _is_sound(error) else translated(kind, who, error)


def _is_sound(error: Any) -> bool:
    """Whether it has the fields that `AsmError` promises, and a code that can be a code."""
    try:
        code, message, details, said = error.code, error.message, error.details, error.to_dict()
        error.session_id, error.run_id = error.session_id, error.run_id  # they are filled in later
        bool(error.retryable)
    except Exception:
        return False
    return (
        isinstance(code, str)
        and 0 < len(code) <= MAX_CODE_LENGTH
        and code.isascii()
        and code.isprintable()
        and isinstance(message, str)
        and isinstance(details, dict)
        and isinstance(said, dict)
    )


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


async def answered(call: Awaitable[T]) -> T:
    """What a store answers, with `store_errors`.

    A call that ends as cancelled though nobody cancelled its caller was cut off: `StoreUnavailable`.
    """
    try:
        with store_errors():
            return await call
    except asyncio.CancelledError as cut_off:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise StoreUnavailable("the store cut the call off") from cut_off
