from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asm_runtime.adapters.output import Head, Lines, Tail


def cut(data: bytes, *, sizes: int = 1, limit: int = 1000, take: bool = False) -> list[str]:
    """The pieces of a stream that comes in chunks; `take`: what waits is taken after each."""
    lines = Lines(limit)
    pieces: list[str] = []
    for start in range(0, len(data), sizes):
        pieces += lines.feed(data[start : start + sizes])
        if take and lines.has_lines:
            pieces.append(lines.take())
    return [*pieces, lines.end()]


@given(
    st.binary(max_size=60) | st.text(alphabet="a\n\r\0é€😀").map(str.encode),
    st.integers(1, 9),
    st.integers(4, 9),
    st.booleans(),
)
def test_the_pieces_are_the_text_and_none_is_too_long(
    data: bytes, sizes: int, limit: int, take: bool
) -> None:
    pieces = cut(data, sizes=sizes, limit=limit, take=take)
    assert "".join(pieces) == data.decode(errors="replace")
    assert all(len(piece) <= limit for piece in pieces)


@given(st.text(alphabet="a\n\ré€😀"), st.integers(1, 9), st.integers(4, 9), st.booleans())
def test_lines_are_whole_unless_they_are_too_long(text: str, sizes: int, limit: int, take: bool) -> None:
    *pieces, _ = cut(text.encode(), sizes=sizes, limit=limit, take=take)
    for piece in pieces:
        assert len(piece.encode()) <= limit
        assert piece.endswith("\n") or len(piece.encode()) > limit - 4


def test_lines_that_come_together_are_one_piece() -> None:
    lines = Lines(100)
    assert lines.feed(b"one\n\ntwo\nthr") == []
    assert lines.has_lines
    assert lines.take() == "one\n\ntwo\n"
    assert not lines.has_lines
    assert lines.take() == ""
    assert lines.feed(b"ee\n") == []
    assert lines.end() == "three\n"


def test_as_many_lines_as_fit_are_one_piece() -> None:
    lines = Lines(8)
    assert lines.feed(b"12\n45\n78\n" * 2) == ["12\n45\n", "78\n12\n"]
    assert lines.end() == "45\n78\n"


def test_a_line_of_just_the_limit_comes_whole() -> None:
    assert cut(b"1234567\nx", limit=8, sizes=3) == ["1234567\n", "x"]


def test_a_longer_line_comes_in_pieces() -> None:
    assert cut(b"123456789\nx\n", limit=4, sizes=3) == ["1234", "5678", "9\nx\n"]


def test_a_long_line_that_is_no_text_is_cut_all_the_same() -> None:
    assert cut(b"\x80" * 9, limit=4) == ["\ufffd" * 4, "\ufffd" * 4, "\ufffd"]


def test_a_line_that_is_cut_short_loses_half_its_last_character() -> None:
    lines = Lines(100)
    assert lines.feed("ab€".encode()[:-1]) == []
    assert lines.end(cut_short=True) == "ab"
    assert lines.end() == ""


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
