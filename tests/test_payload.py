from __future__ import annotations

import enum
import json
import math
from collections import OrderedDict, UserDict, deque
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asm_runtime import payload
from asm_runtime.errors import ValidationError
from asm_runtime.payload import (
    LARGE,
    MAX_DEPTH,
    JsonObject,
    canonical,
    canonical_object,
    decode,
    encode,
    is_large,
    lossy,
)

texts = st.text(st.characters(exclude_categories=["Cs"]))
integers = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | integers | floats | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
json_objects = st.dictionaries(texts, json_values, max_size=4)


class Color(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Point(NamedTuple):
    x: int
    y: int


class Plain(enum.Enum):
    A = "a"


class Euros(float):
    pass


def exactly(value: Any) -> Any:
    """The value with the type of each part, so that 1, 1.0 and True differ."""
    if isinstance(value, dict):
        return (type(value), {key: exactly(item) for key, item in value.items()})  # pyright: ignore
    if isinstance(value, list):
        return (type(value), [exactly(item) for item in value])  # pyright: ignore
    if isinstance(value, float):
        return (type(value), value.hex())
    return (type(value), value)  # pyright: ignore[reportUnknownVariableType]


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"inner": value}
    return value


@given(json_objects)
def test_what_is_accepted_round_trips_through_json_exactly(value: dict[str, Any]) -> None:
    copy = canonical_object(value, "data")
    assert exactly(copy) == exactly(value)
    assert exactly(decode(encode(copy))) == exactly(value)
    assert exactly(json.loads(encode(copy))) == exactly(value)


@given(json_objects)
def test_the_copy_shares_nothing_that_can_change(value: dict[str, Any]) -> None:
    before = encode(value)
    copy = canonical_object(value, "data")
    _spoil(value)
    assert encode(copy) == before


def _spoil(value: Any) -> None:
    if isinstance(value, dict):
        for item in value.values():  # pyright: ignore[reportUnknownVariableType]
            _spoil(item)
        value["spoiled"] = True
    elif isinstance(value, list):
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            _spoil(item)
        value.append("spoiled")  # pyright: ignore[reportUnknownMemberType]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ((1, (2,)), [1, [2]]),
        (Point(1, 2), [1, 2]),
        (Color.RED, "red"),
        (Level.HIGH, 3),
        (Euros(1.5), 1.5),
        (OrderedDict([("a", 1)]), {"a": 1}),
        ({Color.RED: 1}, {"red": 1}),
    ],
    ids=repr,
)
def test_subclasses_and_tuples_become_plain_values(given: Any, kept: Any) -> None:
    assert exactly(canonical(given, "data")) == exactly(kept)


@pytest.mark.parametrize("value", [1.0, 1e22, -0.0, 5e-324, 1.7976931348623157e308])
def test_a_float_stays_a_float(value: float) -> None:
    assert exactly(decode(encode(canonical(value, "data")))) == exactly(value)


@pytest.mark.parametrize(
    "value", ["", "\0", "\ud7ff\ue000", "😀", "\u2028", "x" * 10_000_000], ids=lambda text: repr(text)[:20]
)
def test_any_text_that_utf8_can_carry_is_kept(value: str) -> None:
    assert decode(encode(canonical_object({value: value}, "data"))) == {value: value}


def test_none_is_the_empty_object() -> None:
    assert canonical_object(None, "data") == {}


@pytest.mark.parametrize("value", [[], (), "text", b"bytes", 1, True, UserDict(a=1), ...], ids=repr)
def test_what_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError, match=r"^data must be a dict") as refused:
        canonical_object(value, "data")
    assert refused.value.details == {"path": "data"}


@pytest.mark.parametrize(
    "refused",
    [
        math.nan,
        math.inf,
        -math.inf,
        Euros("nan"),
        2**63,
        -(2**63) - 1,
        10**5000,
        "\ud800",
        "text\udfff",
        b"bytes",
        bytearray(),
        {1, 2},
        frozenset[int](),
        datetime(2024, 1, 1, tzinfo=UTC),
        Decimal("1.5"),
        1j,
        object(),
        print,
        UserDict(a=1),
        range(3),
        iter([]),
        Plain.A,
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_what_json_cannot_carry_is_refused_with_the_path_to_it(refused: Any) -> None:
    value = {"a": [{"some key": ("fine", {"b": refused})}]}
    with pytest.raises(ValidationError) as error:
        canonical_object(value, "data")
    assert error.value.details == {"path": "data.a[0]['some key'][1].b"}
    assert str(error.value).startswith("data.a[0]['some key'][1].b ")


@pytest.mark.parametrize("key", [1, None, True, 1.5, b"bytes", ("a",), "\ud800"], ids=repr)
def test_a_key_that_is_no_text_is_refused_with_the_path_to_its_object(key: Any) -> None:
    with pytest.raises(ValidationError, match=r"^data\.a\[0\] has a key") as error:
        canonical_object({"a": [{key: 1}]}, "data")
    assert error.value.details == {"path": "data.a[0]"}


def test_nesting_is_carried_to_the_depth_of_100_and_no_further() -> None:
    assert canonical(nested(MAX_DEPTH), "data") == nested(MAX_DEPTH)
    for depth in (MAX_DEPTH + 1, 100_000):
        with pytest.raises(ValidationError, match="nested deeper than 100"):
            canonical(nested(depth), "data")


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append({"again": loop})
    with pytest.raises(ValidationError, match="nested deeper"):
        canonical(loop, "data")


def test_a_path_with_a_long_key_stays_readable() -> None:
    with pytest.raises(ValidationError) as error:
        canonical({"no identifier " * 1_000_000: b""}, "data")
    assert len(str(error.value)) < 200


# -- lossy


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError("no")


anything = st.recursive(
    json_values
    | st.floats()
    | st.text()
    | st.binary()
    | st.integers()
    | st.builds(Rude)
    | st.builds(lambda: 10**5000),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers() | st.just(b"\xff"), inner)
        | st.sets(st.integers())
    ),
    max_leaves=10,
)


@given(anything)
def test_lossy_makes_json_of_anything(value: Any) -> None:
    copy = lossy(value)
    assert exactly(canonical(copy, "details")) == exactly(copy)
    assert exactly(decode(encode(copy))) == exactly(copy)


@given(json_values)
def test_lossy_loses_nothing_that_json_can_carry(value: Any) -> None:
    assert exactly(lossy(value)) == exactly(value)


def test_lossy_cuts_what_is_nested_too_deep_or_contains_itself() -> None:
    loop: list[Any] = []
    loop.append(loop)
    for value in (loop, nested(MAX_DEPTH + 50)):
        canonical(lossy(value), "details")


def doubled(depth: int) -> Any:
    """JSON would write what is inside 2**depth times."""
    value: Any = {"x": 1}
    for _ in range(depth):
        value = {"a": value, "b": [value]}
    return value


def itself_twice() -> Any:
    value: JsonObject = {}
    value["a"] = value["b"] = value
    return value


def hundredfold() -> Any:
    value: Any = [1] * 100
    for _ in range(40):
        value = [value] * 100
    return value


ENDLESS = [doubled(40), itself_twice(), hundredfold(), list(range(100_000)), {"x": "y" * 10_000_000}]


@pytest.mark.parametrize("number", range(len(ENDLESS)))
def test_lossy_cuts_what_is_too_much(number: int) -> None:
    copy = lossy(ENDLESS[number])
    assert len(encode(copy)) < 2_000_000
    canonical(copy, "details")


@pytest.mark.parametrize(
    "value", [deque([hundredfold()] * 9), bytes(10_000_000), SimpleNamespace(x=[1] * 10**6)]
)
def test_lossy_shows_the_beginning_of_what_is_no_json(value: Any) -> None:
    assert len(lossy(value)) < 2_000


class Unreadable(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("no items")


class Uncountable(list[Any]):
    def __iter__(self) -> Any:
        raise RuntimeError("no iterator")


@pytest.mark.parametrize("value", [Unreadable(x=1), Uncountable([1])])
def test_lossy_makes_json_of_what_cannot_be_read(value: Any) -> None:
    canonical(lossy({"x": value, "y": 1}), "details")
    assert lossy({"x": value, "y": 1})["y"] == 1


def test_lossy_keeps_the_names_of_what_it_cuts() -> None:
    copy = lossy({"code": "c", "message": "m" * 10_000_000, "details": {"a": 1}, "retryable": True})
    assert list(copy) == ["code", "message", "details", "retryable"]
    assert (copy["code"], copy["details"], copy["retryable"]) == ("c", {"a": 1}, True)


@pytest.mark.parametrize("make", [lambda: doubled(60), hundredfold, lambda: [hundredfold()]])
def test_what_holds_the_same_thing_again_and_again_is_refused(make: Any) -> None:
    with pytest.raises(ValidationError, match=r"again and again|deeper than"):
        canonical(make(), "data")


def test_a_long_list_is_stored() -> None:
    assert canonical([0.5] * 1_000_000, "output") == [0.5] * 1_000_000
    rows = [{"id": number, "name": "x", "score": 0.5} for number in range(100_000)]
    assert canonical(rows, "output") == rows


# -- what is large


def test_a_payload_is_large_by_its_values_or_its_text() -> None:
    text = "x" * payload.CHARACTERS_PER_VALUE
    for small in (
        {},
        {"a": 1, "b": [1, 2, 3]},
        [0] * (LARGE // 2),
        {"a": text * (LARGE // 2)},
        None,
        1.5,
        text,
    ):
        assert not is_large(small)
    large: list[Any] = [
        [0] * (LARGE + 1),
        {"a": {"b": [{}] * (LARGE + 1)}},
        {"a": text * (LARGE + 1)},
        ({"a": [text] * (LARGE // 2 + 1)},),
        dict.fromkeys(map(str, range(LARGE + 1))),
        OrderedDict(a=[0], b=(0,) * LARGE),
    ]
    for value in large:
        assert is_large(value)


def test_what_is_large_is_not_looked_through() -> None:
    class Counting(dict[str, Any]):
        def values(self) -> Any:
            raise AssertionError("looked into")

    assert is_large([0, Counting.fromkeys(map(str, range(LARGE)))])


@pytest.mark.parametrize("large", [1, 2, 7, LARGE])
def test_the_pieces_of_a_payload_are_its_json_text(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload, "LARGE", large)
    monkeypatch.setattr(payload, "_PIECE", 3 * large)
    monkeypatch.setattr(payload, "CHARACTERS_PER_VALUE", 3)
    random = Random(large)

    def value(depth: int) -> Any:
        kind = random.randrange(8 if depth < 5 else 5)
        if kind >= 5:
            inside = [value(depth + 1) for _ in range(random.randrange(6))]
            return inside if kind == 5 else {text(): item for item in inside}
        return (None, True, random.randrange(-(10**6), 10**6), random.random() * 1e20, text())[kind]

    def text() -> str:
        return "".join(random.choices('ab"\\/\n\x00\x7fü\u2028\U0001f600', k=random.randrange(30)))

    for _ in range(200):
        made = value(0)
        pieces = list(payload.json_pieces(made))
        assert b"".join(pieces) == payload.encode(made)
        assert all(piece.decode() for piece in pieces)


def test_no_piece_is_much_larger_than_what_is_large() -> None:
    made = {"text": "ü" * 2_000_000, "list": [{"a": [0] * 50}] * 2_000, "one": {"more": "x" * 1_500_000}}
    pieces = list(payload.json_pieces(made))
    assert json.loads(b"".join(pieces)) == made
    assert max(map(len, pieces)) < 4 * LARGE * payload.CHARACTERS_PER_VALUE


FEW_PLAIN: list[Any] = [
    None, True, 0, -(2**63), 2**63 - 1, 1.5, -0.0, "", "é", "\x00",
    2**63, -(2**63) - 1, math.nan, -math.inf, "\ud800", b"", Level.HIGH, Color.RED, Euros(1), (1,), [{}],
    {"c": {}},
]  # fmt: skip


@pytest.mark.parametrize("value", FEW_PLAIN, ids=repr)
@pytest.mark.parametrize("key", ["b", "é", "\ud800", 1, Color.RED])
@pytest.mark.parametrize("count", [1, 20])
def test_a_few_plain_values_are_copied_as_any_others(value: Any, key: Any, count: int) -> None:
    payload = {f"a{number}": "x" for number in range(count)} | {key: value}

    def outcome(copied: Callable[[Any, str], Any]) -> object:
        try:
            copy = copied(payload, "data")
        except ValidationError as refused:
            return str(refused)
        assert copy is not payload
        return encode(copy), [type(item).__name__ for pair in copy.items() for item in pair]

    assert outcome(canonical_object) == outcome(canonical)
