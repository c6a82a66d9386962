"""JSON payloads: what the records carry, checked and copied in one walk.

A payload is an object of str, int, float, bool, None, list and dict. Everything that a JSON
encoder would bend silently (NaN to null, bytes to base64, integer keys to text, a datetime to a
string) is refused instead, so that what was stored reads back equal, in every store.
"""

from __future__ import annotations

from math import isfinite
from typing import Any, TypeAlias

import msgspec

from asm_runtime.errors import ValidationError

__all__ = ["MAX_DEPTH", "JsonObject", "canonical", "canonical_object", "decode", "encode", "lossy"]

JsonObject: TypeAlias = dict[str, Any]
"""A JSON object. `Any` is one of str, int, float, bool, None, list, dict."""

MAX_DEPTH = 100
"""How many objects and lists may stand inside one another, the outermost included."""

MIN_INT, MAX_INT = -(2**63), 2**63 - 1

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder().decode


def canonical_object(value: Any, name: str) -> JsonObject:
    """A plain deep copy of a JSON object; None counts as the empty one.

    Tuples become lists, subclasses of str, int and float their plain value.

    Args:
        value: What the caller passed in.
        name: What the caller calls it, the start of the path in an error.

    Raises:
        ValidationError: It is no JSON object; names the path to the value that is not.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValidationError(
            f"{name} must be a dict with string keys, not {_described(value)}", details={"path": name}
        )
    return canonical(value, name)  # type: ignore[no-any-return]  # a dict gives a dict


def canonical(value: Any, name: str) -> Any:
    """Like `canonical_object`, for any JSON value."""
    try:
        return _copy(value, 1)
    except _RefusedError as refused:
        path = name + "".join(reversed(refused.path))
        raise ValidationError(f"{path} {refused.why}", details={"path": path}) from None


def lossy(value: Any) -> Any:
    """A JSON value that says as much of `value` as JSON can carry. Never raises.

    For facts gathered while something fails: an error's details must not be the next failure.
    """
    return _lossy(value, 1)


class _RefusedError(Exception):
    """Carries why, and the path, gathered from the inside out while the stack unwinds."""

    def __init__(self, why: str) -> None:
        self.why = why
        self.path: list[str] = []


def _copy(value: Any, depth: int) -> Any:
    kind: type[Any] = type(value)  # pyright: ignore[reportUnknownVariableType]
    if kind is str:
        return value if value.isascii() else _checked_text(value)
    if kind is dict:
        return _copied_dict(value, depth)
    if value is None or kind is bool:
        return value
    if kind is int:
        return _checked_int(value)
    if kind is float:
        return _checked_float(value)
    if kind is list or kind is tuple:
        return _copied_list(value, depth)
    return _copied_subclass(value, depth)


def _copied_dict(value: dict[Any, Any], depth: int) -> JsonObject:
    if depth > MAX_DEPTH:
        raise _RefusedError(f"is nested deeper than {MAX_DEPTH}")
    copy: JsonObject = {}
    for key, item in value.items():
        if type(key) is not str:
            if not isinstance(key, str):
                raise _RefusedError(f"has a key that is no string: {_described(key)}")
            key = str.__str__(key)  # a subclass becomes its plain value
        if not key.isascii() and _has_lone_surrogate(key):
            raise _RefusedError(f"has a key with a lone surrogate, which UTF-8 cannot carry: {key!r:.60}")
        if type(item) is str and item.isascii():  # the common case, without a call
            copy[key] = item
            continue
        try:
            copy[key] = _copy(item, depth + 1)
        except _RefusedError as refused:
            refused.path.append(f".{key}" if key.isidentifier() else f"[{key!r:.60}]")
            raise
    return copy


def _copied_list(value: list[Any] | tuple[Any, ...], depth: int) -> list[Any]:
    if depth > MAX_DEPTH:
        raise _RefusedError(f"is nested deeper than {MAX_DEPTH}")
    copy: list[Any] = []
    for index, item in enumerate(value):
        try:
            copy.append(_copy(item, depth + 1))
        except _RefusedError as refused:
            refused.path.append(f"[{index}]")
            raise
    return copy


def _copied_subclass(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return _checked_text(str.__str__(value))
    if isinstance(value, int):
        return _checked_int(int.__int__(value))
    if isinstance(value, float):
        return _checked_float(float.__float__(value))
    if isinstance(value, dict):
        return _copied_dict(value, depth)  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, list | tuple):
        return _copied_list(value, depth)  # pyright: ignore[reportUnknownArgumentType]
    raise _RefusedError(f"is {_described(value)}, which JSON cannot carry")


def _checked_text(text: str) -> str:
    if _has_lone_surrogate(text):
        raise _RefusedError("holds a lone surrogate, which UTF-8 cannot carry")
    return text


def _has_lone_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _checked_int(number: int) -> int:
    if MIN_INT <= number <= MAX_INT:
        return number
    raise _RefusedError("is an integer outside -2**63 … 2**63-1")


def _checked_float(number: float) -> float:
    if isfinite(number):
        return number
    raise _RefusedError(f"is {number}, which JSON cannot carry")


def _described(value: object) -> str:
    return f"a {type(value).__name__}"


def _lossy(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        return "…"
    if isinstance(value, dict):
        return {_lossy_text(key): _lossy(item, depth + 1) for key, item in value.items()}  # pyright: ignore
    if isinstance(value, list | tuple | set | frozenset):
        return [_lossy(item, depth + 1) for item in value]  # pyright: ignore
    try:
        return _copy(value, depth)
    except _RefusedError:
        return _lossy_text(value)


def _lossy_text(value: object) -> str:
    try:
        text = str.__str__(value) if isinstance(value, str) else repr(value)
    except Exception:  # a __repr__ that raises must not hide the failure being described
        text = f"<{type(value).__name__}>"
    return text.encode("utf-8", "backslashreplace").decode()
