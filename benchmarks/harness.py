"""Measuring variants side by side: interleaved repetitions, medians and spreads, ratios in pairs.

Machines are noisy and drift: a figure alone says little. So every variant runs once in each
repetition, in turn, and a ratio is taken repetition by repetition before its median is.
"""

from __future__ import annotations

import platform
import sqlite3
import statistics
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, TypeAlias

import msgspec

__all__ = ["Figure", "Harness", "Ratio", "Report", "Variant", "environment"]

Variant: TypeAlias = Callable[[], Awaitable[float]]
"""Does the work once and returns its figure."""


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """What one variant of one case reached."""

    question: str
    case: str
    variant: str
    unit: str
    values: list[float]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """One variant against another, repetition by repetition."""

    question: str
    case: str
    of: str
    to: str
    kind: Literal["at least", "at most"]
    required: float
    goal: float | None
    values: list[float]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def holds(self) -> bool:
        """Whether the median keeps what is required."""
        return self.median >= self.required if self.kind == "at least" else self.median <= self.required


class Report(msgspec.Struct, kw_only=True):
    """A whole run, as it is written to JSON."""

    began: str
    quick: bool
    environment: dict[str, str]
    figures: list[Figure]
    ratios: list[Ratio]


class Harness:
    """Collects what the questions measure.

    Args:
        quick: Do little: it is to be seen that everything runs, not what it reaches.
        repetitions: How often each variant runs.
        say: Where a line about each case goes.
    """

    def __init__(self, *, quick: bool, repetitions: int, say: Callable[[str], None]) -> None:
        self.quick = quick
        self.repetitions = repetitions
        self.question = ""
        self.figures: list[Figure] = []
        self.ratios: list[Ratio] = []
        self.environment = environment()
        self._say = say

    def note(self, line: str) -> None:
        """Say something besides."""
        self._say(line)

    def size(self, full: int, quick: int) -> int:
        """How much to do."""
        return quick if self.quick else full

    async def compare(
        self, case: str, variants: Mapping[str, Variant], *, unit: str, repetitions: int | None = None
    ) -> None:
        """Run the variants in turn, there and back, several times; the first round does not count."""
        values: dict[str, list[float]] = {name: [] for name in variants}
        for variant in variants.values():
            await variant()
        order = list(variants.items())
        for _ in range(repetitions or self.repetitions):
            for name, variant in order:
                values[name].append(await variant())
            order.reverse()
        for name, measured in values.items():
            self.add(case, name, measured, unit=unit)

    def add(self, case: str, variant: str, values: Sequence[float], *, unit: str) -> None:
        """Note figures that were measured elsewhere."""
        figure = Figure(
            question=self.question, case=case, variant=variant, unit=unit, values=[float(v) for v in values]
        )
        self.figures.append(figure)
        low, high = min(figure.values), max(figure.values)
        self._say(
            f"  {case:<34} {variant:<26} {figure.median:>14,.1f} {unit:<10} "
            f"[{low:,.1f} … {high:,.1f}] n={len(figure.values)}"
        )

    def best(self, case: str, *variants: str) -> str:
        """Note the best of some variants in each repetition as a variant of its own; returns its name."""
        name = f"best of {', '.join(variants)}"
        measured = [self._figure(case, variant) for variant in variants]
        values = [max(each) for each in zip(*(figure.values for figure in measured), strict=True)]
        self.add(case, name, values, unit=measured[0].unit)
        return name

    def ratio(
        self,
        case: str,
        of: str,
        to: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        goal: float | None = None,
        to_case: str | None = None,
    ) -> None:
        """Note how two variants relate, and what is required of that.

        Args:
            case: The case that was compared.
            of: The variant that is judged.
            to: The variant it is judged by.
            at_least: What the ratio must reach.
            at_most: Or: what it must not exceed.
            goal: What it should reach.
            to_case: The case of `to`, if it is another one.
        """
        mine, other = self._figure(case, of), self._figure(to_case or case, to)
        required = at_least if at_least is not None else at_most
        assert required is not None
        ratio = Ratio(
            question=self.question,
            case=case,
            of=of,
            to=to if to_case is None else f"{to}, {to_case}",
            kind="at least" if at_least is not None else "at most",
            required=required,
            goal=goal,
            values=[a / b for a, b in zip(mine.values, other.values, strict=True)],
        )
        self._note(ratio)

    def bound(self, case: str, variant: str, *, at_most: float, goal: float | None = None) -> None:
        """Note an absolute bound of a figure, as the ratio to that bound."""
        figure = self._figure(case, variant)
        self._note(
            Ratio(
                question=self.question,
                case=case,
                of=variant,
                to=f"{at_most:g} {figure.unit}",
                kind="at most",
                required=1.0,
                goal=None if goal is None else goal / at_most,
                values=[value / at_most for value in figure.values],
            )
        )

    def _note(self, ratio: Ratio) -> None:
        self.ratios.append(ratio)
        goal = "" if ratio.goal is None else f", goal {ratio.goal:g}"
        self._say(
            f"  {ratio.case:<34} {ratio.of} / {ratio.to} = {ratio.median:.2f} "
            f"({ratio.kind} {ratio.required:g}{goal}) {'holds' if ratio.holds else 'MISSED'}"
        )

    def _figure(self, case: str, variant: str) -> Figure:
        for figure in self.figures:
            if (figure.question, figure.case, figure.variant) == (self.question, case, variant):
                return figure
        raise KeyError(f"{self.question}: nothing was measured for {case}, {variant}")


def environment() -> dict[str, str]:
    """The machine and the versions that a figure belongs to."""
    facts = {
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "processor": _processor(),
        "sqlite": sqlite3.sqlite_version,
    }
    for package in ("asm-runtime", "uvloop", "msgspec", "aiosqlite", "opentelemetry-api"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        models = []
    return f"{len(models)} x {models[0]}" if models else platform.processor()
