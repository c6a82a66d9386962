"""The output of a process, bounded: pieces of whole lines, the beginning, the end.

Bytes become text as UTF-8; invalid bytes are replaced (U+FFFD), so every text can be stored.
"""

from __future__ import annotations

import codecs

__all__ = ["Head", "Lines", "Tail"]


class Lines:
    """Cuts a stream of chunks into pieces of whole lines. Joined they are the stream again.

    A piece has `max_bytes` at the most. Only a line that is longer is cut, and never inside a character.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._waiting = b""

    @property
    def has_lines(self) -> bool:
        """Whether a complete line waits."""
        return b"\n" in self._waiting

    def feed(self, chunk: bytes) -> list[str]:
        """Take this in; returns the pieces that are full."""
        waiting = self._waiting + chunk
        pieces: list[str] = []
        place = 0
        while len(waiting) - place > self._max_bytes:
            end = waiting.rfind(b"\n", place, place + self._max_bytes) + 1
            if end == 0:
                end = _end_of_character(waiting, place + self._max_bytes)
            pieces.append(_text(waiting[place:end]))
            place = end
        self._waiting = waiting[place:]
        return pieces

    def take(self) -> str:
        """The complete lines that wait."""
        end = self._waiting.rfind(b"\n") + 1
        lines, self._waiting = self._waiting[:end], self._waiting[end:]
        return _text(lines)

    def end(self, *, cut_short: bool = False) -> str:
        """All that waits, at the end of the stream.

        Args:
            cut_short: The stream goes on, unread: half a character at the end is left out.
        """
        rest, self._waiting = self._waiting, b""
        return _text(rest, cut_short=cut_short)


class Head:
    """Keeps the first bytes of a stream, up to a limit.

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
    """Keeps the end of a stream: a maximum of bytes and of lines, each at least 1."""

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
