"""Plots of speed, CPU and memory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure as Plot

from bench.targets import Figure

_PLOTS = {
    "speed.svg": ("posts/s", ("limit", "peers", "migration", "ingestion", "scaling"), "log"),
    "cpu.svg": ("our CPU, µs/post", ("limit", "peers", "migration", "ingestion", "scaling"), "log"),
    "memory.svg": ("peak, MB", ("growth",), "linear"),
}
"""What each shows, of which groups, and on which scale."""
_ROW_INCHES = 0.32


def draw(results: Sequence[Mapping[str, Any]], folder: Path) -> list[str]:
    """Draw what there are figures for; returns the names of the files."""
    mpl.rcParams["svg.hashsalt"] = "bench"  # The same figures give the same file.
    drawn = []
    for name, (quantity, groups, scale) in _PLOTS.items():
        shown = [result for result in results if "error" not in result and result["group"] in groups]
        values = {
            f"{contender}: {lap}": list(found.values())
            for contender, lap in dict.fromkeys((result["contender"], result["name"]) for result in shown)
            if (found := Figure(contender, lap, quantity).by_round(shown))
        }
        if values:
            _points(values, quantity, scale, folder / name)
            drawn.append(name)
    return drawn


def _points(values: Mapping[str, Sequence[float]], quantity: str, scale: str, file: Path) -> None:
    """Draw medians as points, and lowest and highest as whiskers."""
    plot = Plot(figsize=(9, 1.2 + _ROW_INCHES * len(values)), layout="constrained")
    axes = plot.subplots()
    middles = [median(found) for found in values.values()]
    low = [middle - min(found) for middle, found in zip(middles, values.values(), strict=True)]
    high = [max(found) - middle for middle, found in zip(middles, values.values(), strict=True)]
    axes.errorbar(middles, list(values), xerr=[low, high], fmt="o", capsize=3, color="#4c72b0", ecolor="#888888")
    for name, middle in zip(values, middles, strict=True):
        axes.annotate(f"{middle:,.0f}", (middle, name), (0, 5), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xscale(scale)
    if scale == "linear":
        axes.set_xlim(left=0)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(axis="both", alpha=0.3)
    axes.set_xlabel(f"{quantity}: median, lowest, highest")
    axes.spines[["top", "right"]].set_visible(False)
    plot.savefig(file, metadata={"Date": None})
