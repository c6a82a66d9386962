"""What a process writes, made bearable: lines of text, the first so many bytes, the last so many lines.

Bytes become text as UTF-8; what is none is replaced (U+FFFD), so every text can be stored.
"""

from __future__ import annotations

import codecs

__all__ = ["Head", "Lines", "Tail"]


class Lines:
    """Cuts a stream of chunks into pieces of whole lines, which joined are the stream again.

    A piece has at most `max_bytes`. Only a line that is longer is cut, and no character is.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._waiting = b""

    @property
    def has_lines(self) -> bool:
        """Whether a line waits that has its end."""
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
        """The lines that wait, without one that has not ended."""
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
