"""What the demo shows: the sessions' events as they come, and where every run stands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from asm_runtime.cli.escapes import as_one_line
from asm_runtime.records import Event, EventType

__all__ = ["View"]

_COLOURS = ("cyan", "magenta", "yellow")

_ENDS = {
    EventType.RUN_STARTED: "started",
    EventType.RUN_COMPLETED: "completed",
    EventType.RUN_FAILED: "failed",
    EventType.RUN_CANCELLED: "cancelled",
    EventType.RUN_TIMEOUT: "timed out",
}

_MARKS = {"waits": ("○", "dim"), "started": ("◐", "bold"), "completed": ("●", "green")}


class View:
    """Lines for a pipe; for a terminal, lines above a board of all runs.

    Args:
        runs: The runs of each session, in order.
    """

    def __init__(self, runs: dict[str, list[str]]) -> None:
        self._console = Console(force_terminal=sys.stdout.isatty(), highlight=False, soft_wrap=True)
        self._colours = dict(zip(runs, _COLOURS, strict=False))
        self._runs = {session_id: dict.fromkeys(run_ids, "waits") for session_id, run_ids in runs.items()}
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._board, refresh_per_second=12)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def event(self, event: Event) -> None:
        """Show one event of one session's log."""
        what, style = self._described(event)
        if event.run_id is not None and event.type in _ENDS:
            self._runs[event.session_id][event.run_id] = _ENDS[event.type]
        self._print(
            Text.assemble(
                (f"{event.timestamp.astimezone():%H:%M:%S.%f}"[:-3], "dim"),
                f" {event.sequence_number:>4}  ",
                (f"{event.session_id:<9}", self._colours[event.session_id]),
                (f"{event.run_id or '':<8} ", "dim"),
                (what, style),
            )
        )

    def news(self, what: str, style: str = "bold") -> None:
        """Show what the demo itself does."""
        self._print(Text(f"== {what}", style))

    def results(self, results: Sequence[tuple[bool, str]]) -> None:
        """Show the checks, after the board is closed."""
        self._print(Text("\nChecked against the log", "bold"))
        for passed, what in results:
            self._print(Text.assemble(("  ok  " if passed else "  FAILED  ", _style(passed)), what))

    def text(self, title: str, lines: Sequence[str]) -> None:
        """Show a titled paragraph."""
        self._print(Text(f"\n{title}", "bold"))
        for line in lines:
            self._print(Text(f"  {line}"))

    def _print(self, line: Text) -> None:
        self._console.print(line)

    def _described(self, event: Event) -> tuple[str, str]:
        if event.type is EventType.MESSAGE_STREAMED:
            return as_one_line(str(event.data.get("content", "")).rstrip("\n")), ""
        if event.type is EventType.RUN_STARTED:
            attempt = event.data["attempt"]
            return f"run started, attempt {attempt}", "bold" if attempt == 1 else "bold yellow"
        return str(event.type).replace("_", " "), "green" if event.type is EventType.RUN_COMPLETED else "dim"

    def _board(self) -> Table:
        board = Table.grid(padding=(0, 2))
        board.add_row()
        for session_id, runs in self._runs.items():
            marks = Text()
            for run_id, status in runs.items():
                mark, style = _MARKS.get(status, ("✗", "red"))
                marks.append(f"{mark} {run_id}  ", style)
            board.add_row(Text(session_id, f"bold {self._colours[session_id]}"), marks)
        return board


def _style(passed: bool) -> str:
    return "bold green" if passed else "bold red"
