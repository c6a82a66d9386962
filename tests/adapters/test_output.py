from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asm_runtime.adapters.output import Head, Lines, Tail


def cut(data: bytes, *, sizes: int = 1, limit: int = 1000) -> list[str]:
    lines = Lines(limit)
    chunks = [data[start : start + sizes] for start in range(0, len(data), sizes)]
    return [line for chunk in chunks for line in lines.feed(chunk)] + lines.end()


@given(st.text(alphabet="ab\n\r\0é€😀"), st.integers(1, 7))
def test_lines_are_the_same_whatever_the_chunks(text: str, sizes: int) -> None:
    expected = [line.removesuffix("\r") for line in text.split("\n")]
    *ended, rest = expected if text.endswith("\n") or not text else [*expected[:-1], text.split("\n")[-1]]
    assert cut(text.encode(), sizes=sizes) == [*ended, *([rest] if rest else [])]


def test_a_last_line_without_its_end_is_a_line() -> None:
    assert cut(b"one\ntwo") == ["one", "two"]


def test_empty_lines_are_lines() -> None:
    assert cut(b"\n\n") == ["", ""]


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert cut(b"a\xff\xfeb\nc\xed\xa0\x80") == ["a\ufffd\ufffdb", "c\ufffd\ufffd\ufffd"]


def test_nul_is_carried() -> None:
    assert cut(b"a\0b\n") == ["a\0b"]


def test_a_line_of_just_the_limit_comes_whole() -> None:
    assert cut(b"12345678\n", limit=8, sizes=3) == ["12345678"]


def test_a_longer_line_comes_in_pieces() -> None:
    assert cut(b"123456789\nx\n", limit=4, sizes=3) == ["1234", "5678", "9", "x"]


@given(st.text(alphabet="aé€😀", max_size=40), st.integers(1, 9))
def test_no_piece_splits_a_character_and_together_they_are_the_line(text: str, sizes: int) -> None:
    pieces = cut(text.encode(), limit=4, sizes=sizes)
    assert "".join(pieces) == text
    assert all(len(piece.encode()) <= 4 for piece in pieces)


def test_a_long_line_that_is_no_text_is_cut_all_the_same() -> None:
    assert cut(b"\x80" * 9, limit=4) == ["\ufffd" * 4, "\ufffd" * 4, "\ufffd"]


def test_a_line_that_is_cut_short_loses_half_its_last_character() -> None:
    lines = Lines(100)
    assert lines.feed("ab€".encode()[:-1]) == []
    assert lines.end(cut_short=True) == ["ab"]
    assert lines.end() == []


@given(st.lists(st.binary(max_size=9)), st.integers(1, 30))
def test_the_head_is_what_came_first(chunks: list[bytes], limit: int) -> None:
    head = Head(limit)
    kept = b"".join([head.feed(chunk) for chunk in chunks])
    whole = b"".join(chunks)
    assert kept == whole[:limit]
    assert (head.seen, head.truncated) == (len(whole), len(whole) > limit)


def test_a_truncated_head_does_not_end_in_half_a_character() -> None:
    head = Head(4)
    head.feed("ab€€".encode())
    assert head.text() == "ab"
    whole = Head(5)
    whole.feed("ab€".encode())
    assert whole.text() == "ab€"


@given(st.lists(st.text(alphabet="aé😀\n", max_size=9)), st.integers(1, 30), st.integers(1, 4))
def test_the_tail_is_what_came_last(texts: list[str], max_bytes: int, max_lines: int) -> None:
    tail = Tail(max_bytes, max_lines)
    for text in texts:
        tail.feed(text.encode())
    kept = tail.text()
    assert "".join(texts).endswith(kept)
    assert len(kept.encode()) <= max_bytes
    assert len(kept.splitlines()) <= max_lines


@pytest.mark.parametrize(
    ("max_lines", "expected"), [(1, "three\n"), (2, "two\nthree\n"), (9, "one\ntwo\nthree\n")]
)
def test_the_tail_has_whole_lines(max_lines: int, expected: str) -> None:
    tail = Tail(100, max_lines)
    tail.feed(b"one\ntwo\nthree\n")
    assert tail.text() == expected
