"""What the command prints: for people on a terminal, for programs in a pipe.

In a pipe there are no colours, no padding and no header: one record a line, its fields separated by
tabs, or its JSON. What others wrote is escaped here, so that no caller can forget it.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TextIO, TypeAlias, cast

from rich.console import Console
from rich.text import Text

from asm_runtime.cli.escapes import as_json, as_lines, as_one_line
from asm_runtime.cli.exits import output_failed
from asm_runtime.payload import JsonObject, encode
from asm_runtime.records import Event, EventType, Run, Session

__all__ = [
    "Cell",
    "Output",
    "event_rows",
    "input_text",
    "json_text",
    "message_text",
    "run_cells",
    "session_cells",
]

Cell: TypeAlias = tuple[str, str]
"""A text, by anybody, and its style."""


READER_LOOK_S = 0.25
"""How often it is looked whether the reader of a quiet stream is still there."""


class Output:
    """One stream of this process, written off the event loop.

    A reader that is slow, a pager for instance, holds up what is printed and nothing else: timeouts
    and Ctrl-C go on.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_terminal = stream.isatty()
        """Whether somebody looks at it."""
        self._console = Console(file=stream, force_terminal=self.is_terminal, highlight=False, soft_wrap=True)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="asm-output")  # one: in order

    async def text(self, text: str) -> None:
        """Write what a run says: to a terminal with its control characters escaped, else as it stands.

        Like the other methods it returns when all is flushed.

        Raises:
            BrokenPipeError: The reader has gone.
            AsmError: It cannot be written: the disk is full, for instance.
        """
        await self._write(as_lines(text) if self.is_terminal else text)

    async def json(self, records: Iterable[object]) -> None:
        """Write records as JSON, one a line."""
        await self._write("".join(f"{json_text(record)}\n" for record in records))

    async def while_read(self, work: Coroutine[Any, Any, None]) -> None:
        """Do some work as long as anybody reads the stream.

        A writer hears of a closed pipe only when it writes, and what follows a log may not do so for hours.

        Raises:
            BrokenPipeError: The reader has gone; the work was cancelled.
        """
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch_reader())
            working = group.create_task(work)
            working.add_done_callback(lambda _: watching.cancel())

    async def _watch_reader(self) -> None:
        if not hasattr(select, "poll"):  # Windows
            return
        poller = select.poll()
        poller.register(self._stream.fileno(), 0)  # asks for nothing: errors and hang-ups are always told
        while True:
            await asyncio.sleep(READER_LOOK_S)
            if poller.poll(0):
                raise BrokenPipeError

    async def table(self, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Write rows: in columns, and under a header if there is one, if somebody looks; else with tabs."""
        if not self.is_terminal:
            await self.lines(rows)
            return
        titles = [[(title, "bold") for title in header]] if header else []
        titled = [self._cells(row) for row in (*titles, *rows)]
        widths = [max(row[column].cell_len for row in titled) for column in range(len(titled[0]))]
        for row in titled:
            for cell, width in zip(row[:-1], widths, strict=False):
                cell.pad_right(width - cell.cell_len)
        await self._show(Text("  ").join(row) for row in titled)

    async def lines(self, rows: Iterable[Sequence[Cell]], *, whole: bool = False) -> None:
        """Write rows: between their cells two spaces if somebody looks, else tabs.

        Args:
            rows: What to write.
            whole: A row that is longer than a terminal's line goes on in the next; else it is cut off.
        """
        if self.is_terminal:
            await self._show((Text("  ").join(self._cells(row, whole=whole)) for row in rows), whole=whole)
        else:
            await self._write("".join("\t".join(as_one_line(text) for text, _ in row) + "\n" for row in rows))

    def _cells(self, row: Sequence[Cell], *, whole: bool = False) -> list[Text]:
        # Measuring megabytes takes long, and nothing of them is seen beyond the line's end.
        longest = None if whole else 4 * self._console.width
        return [Text(as_one_line(text[:longest]), style) for text, style in row]

    async def _show(self, lines: Iterable[Text], *, whole: bool = False) -> None:
        """Write lines in colour; unless they are to be whole, each cut off at the end of the terminal's."""
        with self._console.capture() as captured:
            for line in lines:
                if not whole:
                    line.truncate(self._console.width, overflow="ellipsis")
                self._console.print(line)
        await self._write(captured.get())

    async def _write(self, text: str) -> None:
        await asyncio.get_running_loop().run_in_executor(self._writer, self._flush, text)

    def _flush(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:
            raise output_failed(self._stream, error) from error


def session_cells(session: Session) -> list[Cell]:
    """A session as a row: id, status, agent, when it was made, tags."""
    return [
        (session.id, ""),
        _status(session.status),
        (session.agent_id, ""),
        (f"{session.created_at:%Y-%m-%dT%H:%M:%SZ}", ""),
        (",".join(session.tags), ""),
    ]


def run_cells(run: Run) -> list[Cell]:
    """A run as a row: id, status, attempt, when it was made, how long it took, its error or input."""
    seconds = ""
    if run.started_at and run.ended_at:
        seconds = f"{(run.ended_at - run.started_at).total_seconds():.3f}"
    error = run.error  # any object: a store does not ask what is in it
    about = f"{error.get('code')}: {error.get('message')}" if error else input_text(run.input)
    return [
        (run.id, ""),
        _status(run.status),
        (str(run.attempt), ""),
        (f"{run.created_at:%Y-%m-%dT%H:%M:%SZ}", ""),
        (seconds, ""),
        (about, ""),
    ]


def event_rows(event: Event, *, is_terminal: bool) -> list[list[Cell]]:
    """An event as a row: number, time, type, run, data. People see messages and errors as lines of text."""
    kind, run_id = str(event.type), event.run_id or ""
    if not is_terminal:
        fields = str(event.sequence_number), event.timestamp.isoformat(), kind, run_id, json_text(event.data)
        return [[(field, "") for field in fields]]
    first: list[Cell] = [
        (f"{event.sequence_number:>6}", "dim"),
        (f"{event.timestamp.astimezone():%H:%M:%S.%f}"[:-3], "dim"),
        (f"{kind:<20}", _STYLES.get(kind, "")),
        (f"{run_id[-6:]:<6}", "cyan"),
    ]
    text = message_text(event)
    if text is None:
        return [[*first, (json_text(event.data), "")]]
    blank: list[Cell] = [(" " * len(cell), "") for cell, _ in first]
    lines = text.expandtabs().split("\n")
    return [[*(blank if number else first), (line, "")] for number, line in enumerate(lines)]


def message_text(event: Event) -> str | None:
    """What a message says, or why something failed; None for any other event."""
    if event.type in _MESSAGES:
        said = event.data.get("content", event.data.get("delta"))
        return said.rstrip("\n") if isinstance(said, str) else None
    code, why = event.data.get("error_code"), event.data.get("error_message")
    return f"{code}: {why}" if isinstance(code, str) and isinstance(why, str) else None


def input_text(given: Any) -> str:
    """What a run was given: its command or prompt if it has one, else its JSON."""
    said: Any = given
    if isinstance(given, dict) and len(cast(JsonObject, given)) == 1:
        said = next(iter(cast(JsonObject, given).values()))
    return said if isinstance(said, str) else json_text(cast(object, given))


def json_text(record: object) -> str:
    """A record as JSON that is safe to look at."""
    return as_json(encode(record).decode())


_MESSAGES = frozenset((EventType.MESSAGE_SENT, EventType.MESSAGE_STREAMED, EventType.MESSAGE_RECEIVED))

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


def _status(status: str) -> Cell:
    return str(status), _STYLES.get(status, "")
