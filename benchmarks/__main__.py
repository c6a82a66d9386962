"""`python -m benchmarks`: run the questions, print, write JSON and a plot."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import pkgutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

import benchmarks
from benchmarks.harness import Harness, Report

RESULTS = Path(__file__).parent / "results"


def questions() -> list[str]:
    """The names of the questions: one `bench_<name>.py` each."""
    modules = (module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    return sorted(name.removeprefix("bench_") for name in modules if name.startswith("bench_"))


async def measured(names: Sequence[str], *, quick: bool, repetitions: int) -> Report:
    """Ask the questions, one after the other."""
    began = datetime.now(UTC).isoformat(timespec="seconds")
    harness = Harness(quick=quick, repetitions=repetitions, say=lambda line: print(line, flush=True))
    for name in names:
        module = importlib.import_module(f"benchmarks.bench_{name}")
        print(f"\n{name}: {(module.__doc__ or '').splitlines()[0]}", flush=True)
        harness.question = name
        asked = time.perf_counter()
        await module.measure(harness)
        print(f"  ({time.perf_counter() - asked:.0f} s)", flush=True)
    return Report(
        began=began,
        quick=quick,
        environment=harness.environment,
        figures=harness.figures,
        ratios=harness.ratios,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for."""
    known = questions()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="do little, in under a minute: that it runs")
    parser.add_argument("--only", nargs="+", choices=known, metavar="QUESTION", help=", ".join(known))
    parser.add_argument("--repetitions", type=int, help="of each variant (default 7, quick 2)")
    parser.add_argument(
        "--out", type=Path, help="folder for the JSON and the plot (default benchmarks/results; quick: none)"
    )
    options = parser.parse_args(arguments)
    run = measured(
        options.only or known,
        quick=options.quick,
        repetitions=options.repetitions or (2 if options.quick else 7),
    )
    try:
        import uvloop
    except ImportError:
        report = asyncio.run(run)
    else:
        report = uvloop.run(run)
    out: Path | None = options.out or (None if options.quick else RESULTS)
    if out is not None:
        write(report, out)
    missed = [ratio for ratio in report.ratios if not ratio.holds]
    if missed:
        print(f"\n{len(missed)} of {len(report.ratios)} floors are missed here:")
        for ratio in missed:
            print(f"  {ratio.question}, {ratio.case}: {ratio.of} / {ratio.to} = {ratio.median:.2f}")
    elif report.ratios:
        print(f"\nall {len(report.ratios)} floors hold")
    return 0


def write(report: Report, out: Path) -> None:
    """The report as JSON, and a plot of it where matplotlib is installed."""
    out.mkdir(parents=True, exist_ok=True)
    name = report.began[:10]
    file = out / f"{name}.json"
    file.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    print(f"\nwrote {file}")
    if not report.ratios:
        return  # the plot shows floors
    try:
        from benchmarks.plot import draw
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return
    draw(report, out / f"{name}.png")
    print(f"wrote {out / f'{name}.png'}")


if __name__ == "__main__":
    raise SystemExit(main())
