"""What may reach a terminal, over every character there is."""

from __future__ import annotations

import json
import sys
import unicodedata

import pytest

from asm_runtime.cli.escapes import as_json, as_lines, as_one_line

EVERY = [chr(code) for code in range(sys.maxunicode + 1)]

TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}

SEEN = set("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
"""Format characters that are signs of their own."""

JOINERS = {"\u200c", "\u200d"}
"""Persian, Hindi and families of emoji are written with them."""


def is_unsafe(char: str) -> bool:
    """By the tables that come with this Python."""
    kind = unicodedata.category(char)
    return (
        kind in ("Cc", "Cs", "Zl", "Zp")
        or (kind == "Cf" and char not in SEEN | JOINERS)
        or unicodedata.bidirectional(char) in TURNS
    )


UNSAFE = [char for char in EVERY if is_unsafe(char)]


def test_every_unsafe_character_is_escaped_in_one_line() -> None:
    assert len(UNSAFE) > 2_200
    shown = as_one_line("".join(UNSAFE))
    assert shown.isascii()
    assert shown.isprintable()


def test_only_line_ends_and_tabs_are_left_in_lines() -> None:
    shown = as_lines("".join(UNSAFE))
    assert set(shown) & set(UNSAFE) == {"\t", "\n"}


def test_json_says_the_same_in_characters_that_are_safe() -> None:
    text = "".join(char for char in UNSAFE if unicodedata.category(char) != "Cs")
    written = as_json(json.dumps({text: [text]}, ensure_ascii=False))
    assert written.isascii()
    assert written.isprintable()
    assert json.loads(written) == {text: [text]}


def test_every_letter_mark_digit_sign_and_space_is_left_as_it_is() -> None:
    seen = "".join(char for char in EVERY if unicodedata.category(char)[0] in "LNPS" and not is_unsafe(char))
    marks = "".join(char for char in EVERY if unicodedata.category(char)[0] == "M")
    spaces = "".join(char for char in EVERY if unicodedata.category(char) == "Zs")
    for text in (seen, marks, spaces, "".join(SEEN | JOINERS), "👩‍👩‍👧 می‌خواهم ❤️ 日本　語"):
        assert as_one_line(text) == as_lines(text) == as_json(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m\x9d", r"\x9b31m\x9d"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\U000e0041", r"\U000e0041"),
        ("a\tb\r\nc", r"a\tb\r\nc"),
        ("100 %\rdone", r"100 %\rdone"),
        ("\udcff", r"\udcff"),
        ("plain", "plain"),
    ],
)
def test_what_is_escaped_says_what_it_was(text: str, shown: str) -> None:
    assert as_one_line(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\r\nb\n", "a\nb\n"), ("10 %\r20 %\n", "10 %\\r20 %\n"), ("a\tb\x0c\n\r", "a\tb\\x0c\n\\r")],
)
def test_a_carriage_return_that_does_not_end_a_line_is_shown(text: str, shown: str) -> None:
    assert as_lines(text) == shown


def test_json_beyond_the_first_plane_is_a_pair() -> None:
    assert as_json('"\U000e0041"') == r'"\udb40\udc41"'
