"""What a terminal may be sent: text that others wrote is shown, never obeyed.

A model, a command or another user of the store may have written anything. Escaped are the characters
that move the cursor, change colours, titles or the clipboard, begin another line, turn the direction of
writing, or are not seen at all. Letters of every language, joiners and emoji pass.
"""

from __future__ import annotations

import re

__all__ = ["as_json", "as_lines", "as_one_line"]

# Written out rather than taken from `unicodedata`, so that every Python escapes the same.
_UNSAFE = re.compile(
    "["
    "\\x00-\\x1f\\x7f-\\x9f"  # C0, DEL, C1: a terminal may obey the last as it does ESC
    "\\xad\\u061c\\u180e\\u200b\\u200e\\u200f\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb"  # not seen, or turning
    "\\u2028-\\u202e"  # line and paragraph separators, then what turns the direction
    "\\ud800-\\udfff"  # halves of a character, from arguments that are not UTF-8
    "\\U00013430-\\U0001343f\\U0001bca0-\\U0001bca3\\U0001d173-\\U0001d17a"  # layout of rare scripts
    "\\U000e0000-\\U000e00ff\\U000e01f0-\\U000e0fff"  # tags: a text that nobody sees
    "]"
)
_UNSAFE_IN_LINES = re.compile(rf"(?![\t\n]){_UNSAFE.pattern}")


def as_one_line(text: str) -> str:
    """Text as a field of one line; line ends and tabs are escaped too."""
    return _UNSAFE.sub(_shown, text)


def as_lines(text: str) -> str:
    """Text as the lines it is; those that end as on Windows lose the carriage return."""
    return _UNSAFE_IN_LINES.sub(_shown, text.replace("\r\n", "\n"))


def as_json(text: str) -> str:
    """JSON that says the same in characters that are safe to look at."""
    return _UNSAFE.sub(_escaped_in_json, text)


def _shown(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _escaped_in_json(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
