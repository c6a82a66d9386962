"""Draw the picture of the demo: run it in a pseudo-terminal and keep what a terminal shows of it.

    make picture

The lines are those that the demo printed in this run, in their colours; "⋮" stands for lines that were
left out.
"""

import fcntl
import io
import os
import pty
import re
import struct
import sys
import tempfile
import termios
from itertools import groupby
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import MONOKAI
from rich.text import Text

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "assets" / "demo.svg"
COLUMNS = 106
ROWS = 400  # as many as the demo prints: nothing scrolls away
BEFORE, AFTER = 7, 9
"""Lines that are kept before the kill and after it."""

_COLOURS = {"default": None, "brown": "yellow"}
"""What rich calls pyte's colours, where the names differ."""

# The viewer's own fonts: a page that shows the picture asks nobody for one.
SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<title>Three sessions lose their process to kill -9 and carry on in another</title>
<style>
.{unique_id}-matrix {{
    font-family: monospace; font-size: {char_height}px; line-height: {line_height}px;
}}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


class Screen(pyte.Screen):
    """A terminal that knows dim text, too: pyte does not, so it is kept as blinking."""

    def select_graphic_rendition(self, *attributes: int) -> None:
        """Change how the next characters look."""
        super().select_graphic_rendition(*attributes)
        if 2 in attributes:
            self.cursor.attrs = self.cursor.attrs._replace(blink=True)


def main() -> None:
    lines = excerpt(screen_of(["asm-runtime", "demo"]))
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, legacy_windows=False
    )
    for line in lines:
        console.print(line, no_wrap=True, overflow="ignore", crop=False)
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(
        console.export_svg(title="make demo", theme=MONOKAI, code_format=SVG, unique_id="demo"), "utf-8"
    )
    print(f"{PICTURE}: {len(lines)} lines")


def screen_of(command: list[str]) -> list[Text]:
    """What a terminal shows when a program of this environment has ended.

    Raises:
        SystemExit: The program failed.
    """
    screen = Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    with tempfile.TemporaryDirectory() as folder:
        child, terminal = pty.fork()
        if child == 0:
            os.environ |= {"TERM": "xterm-256color", "TMPDIR": folder, "LC_ALL": "C.UTF-8"}
            os.environ.pop("COLORTERM", None)
            os.execv(Path(sys.executable).with_name(command[0]), command)
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        while piece := read(terminal):
            stream.feed(piece)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != 0:
        sys.exit(f"{' '.join(command)} ended with {code}")
    return [shown(screen.buffer[row]) for row in range(ROWS)]


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # the program has ended
        return b""


def shown(row: "pyte.screens.StaticDefaultDict[int, pyte.screens.Char]") -> Text:
    """A line of the screen with its colours."""
    line = Text()
    characters = [row[column] for column in range(COLUMNS)]
    for (colour, bold, dim), alike in groupby(characters, key=lambda its: (its.fg, its.bold, its.blink)):
        style = Style(color=_COLOURS.get(colour, colour), bold=bold, dim=dim)
        line.append("".join(character.data for character in alike), style)
    line.rstrip()
    return line


def excerpt(lines: list[Text]) -> list[Text]:
    """How it begins, the kill and what follows at once, how it ends, and the checks."""
    plain = [line.plain for line in lines]
    kill = next(row for row, text in enumerate(plain) if text.startswith("== kill -9"))
    back = next(row for row, text in enumerate(plain) if "comes back at its cursor" in text)
    checks = plain.index("Checked against the log")
    board = max(row for row in range(checks) if re.match(r"\w+ +●", plain[row])) - 2
    end = next(row for row in range(checks, len(plain)) if not plain[row])
    gap = [Text("  ⋮", "dim")]
    return [
        *lines[:3], *gap, *lines[kill - BEFORE : back + AFTER], *gap, *lines[board - 3 : end],
    ]  # fmt: skip


if __name__ == "__main__":
    main()
