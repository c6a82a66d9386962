from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from enum import IntEnum, StrEnum
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asm_runtime import options
from asm_runtime.errors import ValidationError


class Size(StrEnum):
    SMALL = "small"
    LARGE = "large"


class Number(IntEnum):
    SEVEN = 7


class Text(str):
    pass


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_a_refusal_names_the_option_the_value_and_what_is_allowed() -> None:
    with pytest.raises(ValidationError) as refused:
        options.integer("limit", -1, minimum=0)
    assert str(refused.value) == "limit must be a whole number ≥ 0, not -1"
    assert refused.value.details == {"option": "limit", "value": "-1"}


@pytest.mark.parametrize(
    "value", ["x" * 10_000_000, 10**5000, Rude(), "\ud800"], ids=lambda v: type(v).__name__
)
def test_a_refusal_can_describe_any_value_shortly(value: Any) -> None:
    refused = options.refused("limit", value, "small")
    assert len(str(refused)) < 200
    str(refused).encode()


# -- whole numbers


@pytest.mark.parametrize("value", [0, 1, 2**63 - 1, Number.SEVEN])
def test_a_whole_number_is_returned_as_a_plain_int(value: int) -> None:
    returned = options.integer("limit", value, minimum=0)
    assert (type(returned), returned) == (int, int(value))


@pytest.mark.parametrize("value", [-1, 2**63, 10**5000, True, False, 1.0, "1", None, [], Rude()], ids=type)
def test_what_is_no_whole_number_in_range_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError, match="limit must be a whole number ≥ 0"):
        options.integer("limit", value, minimum=0)


def test_an_optional_whole_number_may_be_none() -> None:
    assert options.integer("limit", None, minimum=1, optional=True) is None
    with pytest.raises(ValidationError, match="or None"):
        options.integer("limit", 0, minimum=1, optional=True)


# -- identifiers


@pytest.mark.parametrize("value", ["a", "x" * 1024, "é" * 512, "😀" * 256, " ", "a/b:c", Text("plain")])
def test_an_identifier_is_returned_as_plain_text(value: str) -> None:
    returned = options.identifier("id", value)
    assert (type(returned), returned) == (str, str.__str__(value))


@pytest.mark.parametrize(
    "value",
    ["", "x" * 1025, "é" * 513, "a\0b", "\ud800", b"a", 1, None, ["a"]],
    ids=lambda value: repr(value)[:20],
)
def test_what_cannot_be_a_key_in_every_database_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError, match="id must be a string of 1 to 1024 bytes"):
        options.identifier("id", value)


@given(st.text())
def test_an_accepted_identifier_is_unchanged_and_short(value: str) -> None:
    try:
        assert options.identifier("id", value) == value
    except ValidationError:
        assert not value or "\0" in value or any("\ud800" <= c <= "\udfff" for c in value)
    else:
        assert 1 <= len(value.encode()) <= 1024


def test_an_optional_identifier_may_be_none() -> None:
    assert options.optional_identifier("id", None) is None
    assert options.optional_identifier("id", "a") == "a"
    with pytest.raises(ValidationError):
        options.optional_identifier("id", "")


def test_identifiers_are_one_or_a_collection() -> None:
    assert options.identifiers("run_id", None) is None
    assert options.identifiers("run_id", "a") == frozenset({"a"})
    assert options.identifiers("run_id", ["a", "b", "a"]) == frozenset({"a", "b"})
    assert options.identifiers("run_id", ()) == frozenset()


@pytest.mark.parametrize("value", [1, b"ab", ["a", ""], [None], iter("a")])
def test_what_is_no_collection_of_identifiers_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError, match="run_id"):
        options.identifiers("run_id", value)


# -- times


def test_an_aware_time_is_converted_to_utc() -> None:
    noon = datetime(2024, 7, 1, 12, 0, 0, 123456, tzinfo=ZoneInfo("Europe/Berlin"))
    assert options.utc("at", noon) == noon
    assert options.utc("at", noon).tzinfo is UTC
    assert options.utc("at", noon).hour == 10


def test_the_second_of_two_equal_wall_clock_times_is_the_later_one() -> None:
    first = datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))
    assert options.utc("at", first.replace(fold=1)) - options.utc("at", first) == timedelta(hours=1)


def test_a_subclass_of_datetime_becomes_a_plain_one() -> None:
    class Stamp(datetime):
        pass

    converted = options.utc("at", Stamp(2024, 1, 1, tzinfo=UTC))
    assert type(converted) is datetime


@pytest.mark.parametrize(
    "value",
    [
        datetime(2024, 1, 1),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=5))),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))),
        "2024-01-01T00:00:00Z",
        1704067200,
        None,
    ],
    ids=repr,
)
def test_a_naive_time_or_none_at_all_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError, match=r"^at must be a"):
        options.utc("at", value)


@given(st.datetimes(timezones=st.timezones()))
def test_any_time_keeps_its_moment(value: datetime) -> None:
    try:
        converted = options.utc("at", value)
    except ValidationError:
        assert value.year in (1, 9999)
    else:
        assert converted.timestamp() == value.timestamp()
        assert converted.tzinfo is UTC


# -- words


def test_a_member_is_given_as_itself_or_as_its_text() -> None:
    assert options.member("size", "small", Size) is Size.SMALL
    assert options.member("size", Size.LARGE, Size) is Size.LARGE


@pytest.mark.parametrize("value", ["huge", "SMALL", "", None, 1, [], {}, Rude(), ["small"]], ids=type)
def test_an_unknown_member_is_refused_with_the_known_ones(value: Any) -> None:
    with pytest.raises(ValidationError, match="size must be one of small, large"):
        options.member("size", value, Size)


def test_members_are_one_or_a_collection() -> None:
    assert options.members("size", None, Size) is None
    assert options.members("size", "small", Size) == frozenset({Size.SMALL})
    assert options.members("size", ["small", Size.SMALL, "large"], Size) == frozenset(
        {Size.SMALL, Size.LARGE}
    )
    assert options.members("size", [], Size) == frozenset()


@pytest.mark.parametrize("value", [1, ["small", "huge"], [None], b"small", iter(["small"])])
def test_what_is_no_collection_of_members_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError, match="size"):
        options.members("size", value, Size)


def test_a_choice_is_one_of_a_few_words() -> None:
    assert options.choice("order", "asc", ("asc", "desc")) == "asc"
    for value in ("up", None, 1, [], ["asc"]):
        with pytest.raises(ValidationError, match="order must be one of asc, desc"):
            options.choice("order", value, ("asc", "desc"))
