"""JSON payloads: what the records carry, checked and copied in one walk.

A payload is an object of str, int, float, bool, None, list and dict. Everything that a JSON
encoder would change silently (NaN to null, bytes to base64, integer keys to text, a datetime to a
string) is refused instead, so that what was stored reads back equal, in every store.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator
from math import isfinite
from typing import Any, TypeAlias, cast

import msgspec

from asm_runtime.errors import ValidationError

__all__ = [
    "LARGE",
    "MAX_DEPTH",
    "JsonObject",
    "canonical",
    "canonical_object",
    "decode",
    "encode",
    "is_large",
    "json_pieces",
    "lossy",
]

JsonObject: TypeAlias = dict[str, Any]
"""A JSON object. `Any` is one of str, int, float, bool, None, list, dict."""

MAX_DEPTH = 100
"""Maximum nesting of objects and lists, the outermost included."""

MAX_VALUES = 2**21
CONTAINER_VALUES = 8
"""How many values a payload may hold; an object or list counts as these, and what it holds.

Only a payload that holds the same object again and again gets there. JSON has no references: with each
level of nesting such a thing doubles, or worse. A list of two million numbers is stored.
"""

MAX_LOSSY_VALUES = 10_000
MAX_LOSSY_CHARACTERS = 2**20
MAX_LOSSY_TEXT = 2**18
"""Maximum size of a lossy copy: values, characters in all, and characters of one text."""

LARGE = 5_000
"""More values than these make a payload large."""

CHARACTERS_PER_VALUE = 200
"""How much text counts as a value of its own."""

_PIECE = LARGE * CHARACTERS_PER_VALUE

MIN_INT, MAX_INT = -(2**63), 2**63 - 1

_SCALARS = frozenset((int, float, bool, type(None)))

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
    kind: type[Any] = type(value)  # pyright: ignore[reportUnknownVariableType]
    if kind is dict and len(value) < 10 and _is_flat(value):
        return dict(value)  # nearly all of them: a few texts and numbers
    if not isinstance(value, dict):
        raise ValidationError(
            f"{name} must be a dict with string keys, not {_described(value)}", details={"path": name}
        )
    return canonical(value, name)  # type: ignore[no-any-return]  # a dict gives a dict


def _is_flat(value: dict[Any, Any]) -> bool:
    """Whether a shallow copy is a canonical one. No promise the other way round."""
    for key, item in value.items():
        if type(key) is not str or not key.isascii():
            return False
        kind: type[Any] = type(item)  # pyright: ignore[reportUnknownVariableType]
        if kind is str:
            if not item.isascii() and _has_lone_surrogate(item):
                return False
        elif kind is int:
            if not MIN_INT <= item <= MAX_INT:
                return False
        elif kind is float:
            if not isfinite(item):
                return False
        elif kind is not bool and item is not None:
            return False
    return True


def canonical(value: Any, name: str) -> Any:
    """Like `canonical_object`, for any JSON value."""
    try:
        return _copy(value, 1, [MAX_VALUES])
    except _RefusedError as refused:
        path = name + "".join(reversed(refused.path))
        raise ValidationError(f"{path} {refused.why}", details={"path": path}) from None


def is_large(value: Any) -> bool:
    """Whether it takes milliseconds to copy or encode a value. Looks no further than to see that."""
    kind: type[Any] = type(value)  # pyright: ignore[reportUnknownVariableType]
    if kind is dict and len(value) < 10:
        for item in value.values():
            if type(item) is str:
                if len(item) > CHARACTERS_PER_VALUE:
                    break
            elif type(item) not in _SCALARS:
                break
        else:
            return False  # nearly all of them: a few short texts and numbers
    found: list[Any] = [value]
    characters = 0
    for item in found:  # grows on the way
        kind = type(item)  # pyright: ignore[reportUnknownVariableType]
        if kind is str:
            characters += len(item)
        elif kind is int or kind is float or kind is bool or item is None:
            pass
        elif kind is dict or kind is list or isinstance(item, dict | list | tuple):
            if len(found) + len(item) > LARGE:  # pyright: ignore[reportUnknownArgumentType]
                return True
            found += item.values() if isinstance(item, dict) else item  # pyright: ignore[reportUnknownMemberType]
    return len(found) + characters // CHARACTERS_PER_VALUE > LARGE


def json_pieces(value: Any) -> Iterator[bytes]:
    """The JSON text of a canonical value in pieces; one that is not large is one piece.

    To encode 10 MB at once would keep the interpreter, and with it the event loop, from everything
    else for 20 to 200 ms, in whatever thread it is done.
    """
    if not is_large(value):
        yield encode(value)
    elif isinstance(value, str):
        yield b'"'
        for start in range(0, len(value), _PIECE):
            yield encode(value[start : start + _PIECE])[1:-1]
        yield b'"'
    elif isinstance(value, dict):
        yield b"{"
        yield from _pieces_inside(list(value.items()), dict)  # pyright: ignore[reportUnknownArgumentType]
        yield b"}"
    else:
        yield b"["
        yield from _pieces_inside(value, list)
        yield b"]"


def _pieces_inside(items: list[Any], kind: type[dict[str, Any]] | type[list[Any]]) -> Iterator[bytes]:
    """What stands between the brackets: halved until it is small, or one."""
    if len(items) == 1:
        (item,) = items
        if kind is dict:
            key, item = item
            yield encode(key) + b":"
        yield from json_pieces(item)
    elif is_large(items):
        middle = len(items) // 2
        yield from _pieces_inside(items[:middle], kind)
        yield b","
        yield from _pieces_inside(items[middle:], kind)
    else:
        yield encode(kind(items))[1:-1]


def lossy(value: Any) -> Any:
    """A JSON value that says as much of `value` as JSON and a row can carry. Never raises.

    For facts gathered while something fails: an error's details must not be the next failure. An
    ellipsis stands for what is left out.
    """
    return _Lossy().copy(value, 1)


class _RefusedError(Exception):
    """Carries why, and the path, gathered from the inside out while the stack unwinds."""

    def __init__(self, why: str) -> None:
        self.why = why
        self.path: list[str] = []


def _copy(value: Any, depth: int, left: list[int]) -> Any:
    """Copy a value that stands `depth` containers deep; `left[0]` more values may follow in the whole."""
    kind: type[Any] = type(value)  # pyright: ignore[reportUnknownVariableType]
    if kind is str:
        return value if value.isascii() else _checked_text(value)
    if kind is dict:
        return _copied_dict(value, depth, left)
    if value is None or kind is bool:
        return value
    if kind is int:
        return _checked_int(value)
    if kind is float:
        return _checked_float(value)
    if kind is list or kind is tuple:
        return _copied_list(value, depth, left)
    return _copied_subclass(value, depth, left)


def _copied_dict(value: dict[Any, Any], depth: int, left: list[int]) -> JsonObject:
    left[0] -= len(value) + CONTAINER_VALUES
    if depth > MAX_DEPTH or left[0] < 0:
        raise _endless(depth)
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
            copy[key] = _copy(item, depth + 1, left)
        except _RefusedError as refused:
            refused.path.append(f".{key}" if key.isidentifier() else f"[{key!r:.60}]")
            raise
    return copy


def _copied_list(value: list[Any] | tuple[Any, ...], depth: int, left: list[int]) -> list[Any]:
    left[0] -= len(value) + CONTAINER_VALUES
    if depth > MAX_DEPTH or left[0] < 0:
        raise _endless(depth)
    copy: list[Any] = []
    for index, item in enumerate(value):
        try:
            copy.append(_copy(item, depth + 1, left))
        except _RefusedError as refused:
            refused.path.append(f"[{index}]")
            raise
    return copy


def _copied_subclass(value: Any, depth: int, left: list[int]) -> Any:
    if isinstance(value, str):
        return _checked_text(str.__str__(value))
    if isinstance(value, int):
        return _checked_int(int.__int__(value))
    if isinstance(value, float):
        return _checked_float(float.__float__(value))
    if isinstance(value, dict):
        return _copied_dict(value, depth, left)  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, list | tuple):
        return _copied_list(value, depth, left)  # pyright: ignore[reportUnknownArgumentType]
    raise _RefusedError(f"is {_described(value)}, which JSON cannot carry")


def _endless(depth: int) -> _RefusedError:
    if depth > MAX_DEPTH:
        return _RefusedError(f"is nested deeper than {MAX_DEPTH}")
    return _RefusedError(f"belongs to more than {MAX_VALUES} values; does it hold the same again and again?")


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


_repr = reprlib.Repr()  # of a container it shows the beginning: a whole one may be endless
_repr.maxlevel = 2
_repr.maxother = _repr.maxstring = 1_000


class _Lossy:
    """One lossy copy, and what it may still take."""

    def __init__(self) -> None:
        self._values = MAX_LOSSY_VALUES
        self._characters = MAX_LOSSY_CHARACTERS

    def copy(self, value: Any, depth: int) -> Any:
        self._values -= 1
        if depth > MAX_DEPTH or self._is_spent:
            return "…"
        try:
            if isinstance(value, dict):
                return self._dict(value, depth)  # pyright: ignore[reportUnknownArgumentType]
            if isinstance(value, list | tuple | set | frozenset):
                return self._list(value, depth)  # pyright: ignore[reportUnknownArgumentType]
            if isinstance(value, str):
                return self._text(value)
            return _copy(value, depth, [0])  # a number, True, False, None
        except Exception:  # also one that an odd container raises when it is read
            return self._text(cast(object, value))

    def _dict(self, value: dict[Any, Any], depth: int) -> JsonObject:
        copy: JsonObject = {}
        for key, item in value.items():
            if self._is_spent:
                copy["…"] = "…"
                break
            name = self._text(key)
            copy[name] = self.copy(item, depth + 1)
        return copy

    def _list(self, value: Iterable[Any], depth: int) -> list[Any]:
        copy: list[Any] = []
        for item in value:
            copy.append(self.copy(item, depth + 1))
            if self._is_spent:
                break
        return copy

    @property
    def _is_spent(self) -> bool:
        return self._values <= 0 or self._characters <= 0

    def _text(self, value: object) -> str:
        try:
            text = str.__str__(value) if isinstance(value, str) else _repr.repr(value)
        except Exception:  # a __repr__ that raises must not hide the failure being described
            text = f"<{type(value).__name__}>"
        room = max(0, min(self._characters, MAX_LOSSY_TEXT))
        if len(text) > room:
            text = text[:room] + "…"
        self._characters -= len(text)
        return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
