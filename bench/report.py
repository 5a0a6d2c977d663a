"""Writes what was measured: raw figures as JSON, tables as Markdown, plots as SVG."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.contenders import SIZES
from bench.plots import draw
from bench.targets import TARGETS, Figure

Results = Sequence[Mapping[str, Any]]

_SPEEDS = (
    "Medians, with the lowest and highest round for speed. The ratio is that of the speed, to the plainest way of the "
    "same job. CPU is that of our own processes; the servers' stands apart."
)
BASES = {
    "limit": ("limit, bound", "copy"),
    "peers": ("limit, bound", "copy"),
    "migration": ("limit, bound", "copy"),
    "ingestion": ("limit, bulk_write", "bulk_write"),
    "scaling": ("ours, 1 worker far away", "through the queue"),
}
"""The lap to which the speed of all others in a group is set in relation."""


def write(run: Mapping[str, Any], folder: Path) -> None:
    """Write everything into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(run, indent=1, ensure_ascii=False))
    plots = draw(run["results"], folder)
    (folder / "results.md").write_text(_markdown(run, plots))


def _markdown(run: Mapping[str, Any], plots: Iterable[str]) -> str:
    results = [result for result in run["results"] if "error" not in result]
    errors = [result for result in run["results"] if "error" in result]
    parts = [
        "# Results",
        _header(run["header"]),
        "## Targets",
        "Ratios are taken round by round; shown is their median, with the lowest and highest round.",
        _targets(results),
        "## Speed, CPU and memory",
        _SPEEDS,
        _speeds(results),
        "## Other figures",
        _others(results),
    ]
    if errors:
        parts += ["## Failed", *(f"Round {e['round']}, {e['contender']}:\n\n```\n{e['error']}\n```" for e in errors)]
    parts += [f"![{plot}]({plot})" for plot in plots]
    return "\n\n".join(parts) + "\n"


def _header(header: Mapping[str, Any]) -> str:
    sizes = ", ".join(f"{header['sizes'][size]:,} {meaning}" for size, meaning in SIZES.items())
    return "\n".join(
        [
            f"- {header['date']}, Python {header['python']}",
            f"- {header['machine']}, {header['cores']} cores, {header['memory_gb']} GiB",
            f"- MongoDB: {header['mongodb']}",
            f"- servers: {_names(header['servers'])}",
            f"- libraries: {_names(header['libraries'])}",
            f"- posts: {sizes}",
            f"- rounds: {header['rounds']}",
        ]
    )


def _names(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _targets(results: Results) -> str:
    rows = []
    for target in TARGETS:
        measured = target.measure(results)
        rows.append(
            [target.what, f"{target.sign} {target.bound:g}", "–", "–", "not measured"]
            if measured is None
            else [
                target.what,
                f"{target.sign} {target.bound:g}",
                _number(measured.median),
                f"{_number(measured.lowest)} – {_number(measured.highest)}",
                "reached" if measured.is_reached else "not reached",
            ]
        )
    return _table(["what", "target", "measured", "lowest – highest", ""], rows)


def _speeds(results: Results) -> str:
    rows = []
    for contender, lap, group in _laps(results):
        speeds = Figure(contender, lap, "posts/s").by_round(results)
        if not speeds:
            continue
        base = Figure(*BASES[group], "posts/s").by_round(results) if group in BASES else {}
        ratios = [speed / base[number] for number, speed in speeds.items() if number in base]
        servers = [f"{name} CPU, µs/post" for name in ("MongoDB", "MariaDB", "Valkey")]
        rows.append(
            [
                contender,
                lap,
                _number(median(speeds.values())),
                f"{_number(min(speeds.values()))} – {_number(max(speeds.values()))}",
                f"{median(ratios):.2f}" if ratios else "–",
                *(
                    _middle(Figure(contender, lap, name).by_round(results))
                    for name in ("our CPU, µs/post", *servers, "peak, MB")
                ),
            ]
        )
    titles = ["contender", "", "posts/s", "lowest – highest", "ratio", "our CPU, µs/post"]
    return _table([*titles, "MongoDB CPU", "MariaDB CPU", "Valkey CPU", "peak, MB"], rows)


def _others(results: Results) -> str:
    rows = []
    for contender, lap, _ in _laps(results):
        names = dict.fromkeys(
            name
            for result in results
            if (result["contender"], result["name"]) == (contender, lap)
            for name in result["figures"]
        )
        for name in names:
            values = Figure(contender, lap, name).by_round(results).values()
            rows.append([contender, name, _number(median(values)), f"{_number(min(values))} – {_number(max(values))}"])
    return _table(["contender", "figure", "median", "lowest – highest"], rows)


def _laps(results: Results) -> Iterable[tuple[str, str, str]]:
    """Return contender, lap and group of everything measured, each once."""
    return dict.fromkeys((result["contender"], result["name"], result["group"]) for result in results)


def _middle(values: Mapping[int, float]) -> str:
    return _number(median(values.values())) if values else "–"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004 - as many digits as matter


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = [titles, ["---"] * len(titles)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [*head, *rows])
