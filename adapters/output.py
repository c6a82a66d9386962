"""What a process writes, made bearable: lines of text, the first so many bytes, the last so many lines.

Bytes become text as UTF-8; what is none is replaced (U+FFFD), so every text can be stored.
"""

from __future__ import annotations

import codecs

__all__ = ["Head", "Lines", "Tail"]


class Lines:
    """Cuts a stream of chunks into lines.

    A line ends with LF or CRLF, which do not belong to it. One that is longer than `max_line_bytes`
    comes in pieces, none of which splits a character.
    """

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._begun = b""

    def feed(self, chunk: bytes) -> list[str]:
        """The lines that this chunk completes."""
        *ended, begun = (self._begun + chunk).split(b"\n")
        lines: list[str] = []
        for line in ended:
            pieces, rest = self._cut(line.removesuffix(b"\r"))
            lines += pieces
            lines.append(_text(rest))
        pieces, self._begun = self._cut(begun)
        return lines + pieces

    def end(self, *, cut_short: bool = False) -> list[str]:
        """What is left behind the last line's end; nothing if there is nothing.

        Args:
            cut_short: The stream goes on, unread: half a character at the end is left out.
        """
        rest = _text(self._begun, cut_short=cut_short)
        self._begun = b""
        return [rest] if rest else []

    def _cut(self, line: bytes) -> tuple[list[str], bytes]:
        pieces: list[str] = []
        while len(line) > self._max_line_bytes:
            size = _end_of_character(line, self._max_line_bytes)
            pieces.append(_text(line[:size]))
            line = line[size:]
        return pieces, line


class Head:
    """Keeps the first so many bytes of a stream.

    Attributes:
        seen: How many bytes went by.
    """

    def __init__(self, limit: int) -> None:
        self.seen = 0
        self._limit = limit
        self._kept = bytearray()

    @property
    def truncated(self) -> bool:
        """Whether there was more."""
        return self.seen > self._limit

    def feed(self, chunk: bytes) -> bytes:
        """Keep what there is room for; returns that part."""
        self.seen += len(chunk)
        kept = chunk[: self._limit - len(self._kept)]
        self._kept += kept
        return kept

    def text(self) -> str:
        """What was kept."""
        return _text(self._kept, cut_short=self.truncated)


class Tail:
    """Keeps the end of a stream: at most so many bytes and so many lines, each at least 1."""

    def __init__(self, max_bytes: int, max_lines: int) -> None:
        self._max_bytes = max_bytes
        self._max_lines = max_lines
        self._kept = b""
        self._cut = False

    def feed(self, chunk: bytes) -> None:
        """Add this to the end."""
        kept = self._kept + chunk
        self._cut = self._cut or len(kept) > self._max_bytes
        self._kept = kept[-self._max_bytes :]

    def text(self) -> str:
        """What was kept; the first line may lack its beginning."""
        kept = self._kept
        if self._cut:
            kept = kept[_begin_of_character(kept) :]
        lines = kept.splitlines(keepends=True)
        return _text(b"".join(lines[-self._max_lines :]))


def _text(data: bytes | bytearray, *, cut_short: bool = False) -> str:
    return codecs.utf_8_decode(data, "replace", not cut_short)[0]


def _end_of_character(data: bytes, limit: int) -> int:
    """The last place up to `limit` where no character of UTF-8 is split; `limit` if there is none near."""
    for place in range(limit, max(limit - 4, 0), -1):
        if data[place] & 0xC0 != 0x80:
            return place
    return limit


def _begin_of_character(data: bytes) -> int:
    """The first place where a character of UTF-8 begins; three bytes on if there is none before."""
    for place, byte in enumerate(data[:3]):
        if byte & 0xC0 != 0x80:
            return place
    return len(data[:3])
