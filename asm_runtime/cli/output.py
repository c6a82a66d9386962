"""What the command prints: for people on a terminal, for programs in a pipe.

In a pipe there are no colours, no padding and no header: one record a line, its fields separated by
tabs, or its JSON. Control characters of what is shown never reach a terminal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TextIO

from rich.console import Console
from rich.text import Text

from asm_runtime.payload import encode
from asm_runtime.records import Event, Run, Session

__all__ = ["Output", "event_line", "run_cells", "session_cells"]


class Output:
    """One stream of this process, written off the event loop.

    A reader that is slow, a pager for instance, holds up what is printed and nothing else: timeouts
    and Ctrl-C go on.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        # A terminal that has no UTF-8 gets escapes. Only what a test puts in place cannot do that.
        reconfigure: Callable[..., None] | None = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
        self._console = Console(file=self._stream, highlight=False, soft_wrap=True)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="asm-output")  # one: in order

    @property
    def is_terminal(self) -> bool:
        """Whether somebody looks at it."""
        return self._console.is_terminal

    async def write(self, text: str) -> None:
        """Write text as it stands; returns when it is flushed.

        Raises:
            BrokenPipeError: The reader has gone.
        """
        await asyncio.get_running_loop().run_in_executor(self._writer, self._write, text)

    async def lines(self, lines: Iterable[Text]) -> None:
        """Write lines, in colour if somebody looks."""
        if not self.is_terminal:
            await self.write("".join(f"{line.plain}\n" for line in lines))
            return
        with self._console.capture() as captured:
            for line in lines:
                self._console.print(line)
        await self.write(captured.get())

    async def json(self, records: Iterable[object]) -> None:
        """Write records as JSON, one a line."""
        await self.write("".join(f"{encode(record).decode()}\n" for record in records))

    async def table(self, header: Sequence[str], rows: Sequence[Sequence[Text]]) -> None:
        """Write rows: in columns under a header if somebody looks, else separated by tabs."""
        if not self.is_terminal:
            await self.lines(Text("\t").join(row) for row in rows)
            return
        titled = [[Text(title, "bold") for title in header], *rows]
        widths = [max(row[column].cell_len for row in titled) for column in range(len(header))]
        for row in titled:
            for cell, width in zip(row[:-1], widths, strict=False):
                cell.pad_right(width - cell.cell_len)
        await self.lines(self.fitted(Text("  ").join(row)) for row in titled)

    def fitted(self, line: Text) -> Text:
        """The line, cut off at the end of the terminal's."""
        line.truncate(self._console.width, overflow="ellipsis")
        return line

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def session_cells(session: Session) -> list[Text]:
    """A session as a row: id, status, agent, when it was made, tags."""
    return [
        Text(printable(session.id)),
        _status(session.status),
        Text(printable(session.agent_id)),
        Text(f"{session.created_at:%Y-%m-%dT%H:%M:%SZ}"),
        Text(printable(",".join(session.tags))),
    ]


def run_cells(run: Run) -> list[Text]:
    """A run as a row: id, status, attempt, when it was made, how long it took, its error or input."""
    seconds = ""
    if run.started_at and run.ended_at:
        seconds = f"{(run.ended_at - run.started_at).total_seconds():.3f}"
    about = f"{run.error['code']}: {run.error['message']}" if run.error else encode(run.input).decode()
    return [
        Text(printable(run.id)),
        _status(run.status),
        Text(str(run.attempt)),
        Text(f"{run.created_at:%Y-%m-%dT%H:%M:%SZ}"),
        Text(seconds),
        Text(printable(about)),
    ]


def event_line(event: Event, output: Output) -> Text:
    """An event as a line: number, time, type, run, data."""
    kind, data = str(event.type), encode(event.data).decode()
    if not output.is_terminal:
        time = event.timestamp.isoformat()
        return Text("\t".join((str(event.sequence_number), time, kind, printable(event.run_id or ""), data)))
    time = f"{event.timestamp.astimezone():%H:%M:%S.%f}"[:-3]
    return output.fitted(
        Text.assemble(
            (f"{event.sequence_number:>6}", "dim"),
            "  ",
            (time, "dim"),
            "  ",
            (f"{kind:<20}", _STYLES.get(kind, "")),
            "  ",
            (f"{printable(event.run_id or '')[-6:]:<6}", "cyan"),
            "  ",
            data,
        )
    )


def printable(text: str) -> str:
    """Text for one field of one line: control characters, tabs and line ends are escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


_STYLES = {
    "active": "green",
    "running": "green",
    "completed": "green",
    "paused": "yellow",
    "timeout": "red",
    "failed": "red",
    "cancelled": "yellow",
    "run_started": "bold",
    "run_completed": "bold green",
    "run_failed": "bold red",
    "run_timeout": "bold red",
    "run_cancelled": "bold yellow",
    "error_occurred": "red",
    "policy_violation": "red",
    "tool_call_failed": "red",
}


def _status(status: str) -> Text:
    return Text(str(status), _STYLES.get(status, ""))
