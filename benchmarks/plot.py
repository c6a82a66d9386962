"""A picture of a report: every floor, and how far above it the runtime is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # to a file, with no screen

from matplotlib import pyplot

from benchmarks.harness import Ratio, Report

__all__ = ["draw"]


def draw(report: Report, file: Path) -> None:
    """Draw each required ratio as a multiple of what is required, with its spread.

    Right of the line is better, whether the requirement is a least or a most.
    """
    ratios = list(reversed(report.ratios))
    plot: Any = pyplot
    figure, axes = plot.subplots(figsize=(11, 1.6 + 0.36 * len(ratios)))
    for row, ratio in enumerate(ratios):
        reached = sorted(_margin(ratio, value) for value in ratio.values)
        middle = _margin(ratio, ratio.median)
        colour = "#2a7f62" if ratio.holds else "#c0392b"
        axes.plot([reached[0], reached[-1]], [row, row], color=colour, linewidth=3, alpha=0.35)
        axes.plot([middle], [row], "o", color=colour, markersize=7)
        axes.annotate(
            f"{ratio.median:.2f}",
            (middle, row),
            textcoords="offset points",
            xytext=(0, 7),
            ha="center",
            fontsize=8,
        )
        if ratio.goal is not None:
            axes.plot([_margin(ratio, ratio.goal)], [row], "|", color="#555555", markersize=13)
    axes.axvline(1.0, color="#333333", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(ratios)))
    axes.set_yticklabels([_label(ratio) for ratio in ratios], fontsize=8)
    axes.set_ylim(-0.7, len(ratios) - 0.3)
    axes.set_xlabel(
        "times what is required (line: just kept; right is better; tick: the goal; number: the ratio)"
    )
    facts = report.environment
    axes.set_title(
        f"{report.began[:10]}, Python {facts['python']}, SQLite {facts['sqlite']}, {facts['processor']}",
        fontsize=9,
    )
    axes.grid(axis="x", which="both", alpha=0.2)
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plot.close(figure)


def _margin(ratio: Ratio, value: float) -> float:
    return value / ratio.required if ratio.kind == "at least" else ratio.required / max(value, 1e-9)


def _label(ratio: Ratio) -> str:
    sign = "≥" if ratio.kind == "at least" else "≤"
    return f"{ratio.question}, {ratio.case}: {ratio.of} / {ratio.to} {sign} {ratio.required:g}"
