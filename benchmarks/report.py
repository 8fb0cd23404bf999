"""How every benchmark ends: a table for people, JSON for programs."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def arguments_of(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to a file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw them (needs requirements/benchmarks.txt)")
    return parser


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a head, as a Markdown table with aligned columns."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    print(f"\n**{title}**\n")
    for row in (head, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)) + " |")


def write_json(path: Path | None, numbers: Mapping[str, Any]) -> None:
    """Write the numbers with what they depend on, or do nothing without a path."""
    if path is not None:
        machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        path.write_text(json.dumps({"machine": machine, **numbers}, indent=1) + "\n")


def median_ms(run: Callable[[], object], repeats: int) -> float:
    """Median time of a call, in milliseconds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0..1) of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, round(share * len(ordered) + 0.5) - 1))]


def bars(path: Path | None, title: str, unit: str, values: Mapping[str, float]) -> None:
    """Draw one bar per value into a PNG, or do nothing without a path."""
    if path is None:
        return
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.6 + 0.35 * len(values)), layout="constrained")
    drawn = axes.barh(list(values), list(values.values()), color="#3b6ea5")
    axes.bar_label(drawn, fmt=lambda value: f"{value:.3g}" if value < 1000 else f"{value:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(title=title, xlabel=unit)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def lines(path: Path | None, title: str, along: str, x: Sequence[float], values: Mapping[str, Sequence[float]]) -> None:
    """Draw each quantity over `x` in a panel of its own into a PNG, or do nothing without a path."""
    if path is None:
        return
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(len(values), figsize=(8, 2.2 * len(values)), layout="constrained", sharex=True)
    for axes, (name, y) in zip(panels, values.items(), strict=True):
        axes.plot(x, y, color="#3b6ea5", linewidth=1)
        axes.set(ylabel=name, ylim=(0, max(y) * 1.1))
    panels[-1].set(xlabel=along)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
