"""`python -m bench`: run the contenders, and write tables and plots of what was measured."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import report, runs
from bench.contenders import GROUPS, SIZES, Size
from bench.mongo_stand_in import MongoStandIn
from bench.stores import Stores
from pipeline_poc.chaos.servers import Mongo

_DEFAULTS: dict[Size, int] = {"posts": 20_000, "few": 1000, "small": 10_000, "large": 200_000, "slow": 10_000}
_SMALL: dict[Size, int] = {"posts": 300, "few": 20, "small": 200, "large": 400, "slow": 200}


def main() -> None:
    """Read the command line, measure, write."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    for size, meaning in SIZES.items():
        parser.add_argument(f"--{size}", type=int, help=f"posts {meaning} (default {_DEFAULTS[size]:,})")
    parser.add_argument("--repeats", type=int, help="rounds (default 5)")
    parser.add_argument("--only", help=f"groups, by commas: {', '.join(GROUPS)} (default all)")
    parser.add_argument("--stand-in", action="store_true", help="MongoDB that costs nearly nothing; see README.md")
    parser.add_argument("--read-us", type=float, default=0.0, help="its pretended time for each document read, µs")
    parser.add_argument("--write-us", type=float, default=0.0, help="the same for each one written, µs")
    parser.add_argument("--tiny", action="store_true", help="take so few of everything that it is over in a minute")
    parser.add_argument("--output", type=Path, default=Path("bench-results"), help="folder (default %(default)s)")
    parser.add_argument("--again", type=Path, help="measure nothing; write tables and plots of this results.json")
    arguments = parser.parse_args()
    groups = arguments.only.split(",") if arguments.only else GROUPS
    if unknown := set(groups) - set(GROUPS):
        parser.error(f"no such group: {', '.join(sorted(unknown))}")
    if arguments.again:
        report.write(json.loads(arguments.again.read_text()), arguments.output)
        return
    if arguments.stand_in and "MONGO_URL" in os.environ:
        parser.error("MONGO_URL is set: unset it, or leave --stand-in out")
    sizes = _SMALL if arguments.tiny else _DEFAULTS
    sizes = {size: getattr(arguments, size) or number for size, number in sizes.items()}
    repeats = arguments.repeats or (1 if arguments.tiny else 5)
    measured: Mapping[str, Any] = {}
    with _stores(arguments) as stores:
        for measured in runs.run(groups, sizes, repeats, stores, is_small=arguments.tiny):
            report.write(measured, arguments.output)  # After each round: nobody has to wait for the last one.
    print((arguments.output / "results.md").read_text())
    if failed := [result["contender"] for result in measured["results"] if "error" in result]:
        sys.exit(f"failed: {', '.join(dict.fromkeys(failed))}")


def _stores(arguments: argparse.Namespace) -> Stores:
    if url := os.environ.get("MONGO_URL"):
        return Stores(url, "the server at MONGO_URL")
    if arguments.stand_in:
        cost = f"{arguments.read_us:g} µs a document read, {arguments.write_us:g} µs written"
        return Stores(MongoStandIn(arguments.read_us, arguments.write_us), f"stand-in, for our own cost only ({cost})")
    return Stores(Mongo(), "SecantusDB's Python server")


if __name__ == "__main__":
    main()
