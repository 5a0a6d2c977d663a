"""The command line of the fault suite; see `pipeline_poc.chaos`."""

import json
import secrets
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline_poc.commands import EXIT_NOT_OK
from pipeline_poc.errors import ServiceStartError

if TYPE_CHECKING:
    from pipeline_poc.chaos.runs import RunResult


@click.command()
@click.option("--seed", type=int, help="Of all that is drawn by lot.  [default: another one each time]")
@click.option("--faults", default=200, show_default=True, help="Fault runs; each has a fault or more.")
@click.option("--posts", default=10_000, show_default=True, help="Posts that go through all runs together.")
@click.option("--run", "only", type=int, help="Play that one run only.")
@click.option("--fault", "named", multiple=True, help="Strike only faults whose name has this in it.")
@click.option("-x", "--exitfirst", is_flag=True, help="End with the first run in which a promise is broken.")
@click.option("--jobs", default=2, show_default=True, help="Sets of servers that work at once.")
@click.option(
    "--logs", type=click.Path(path_type=Path), default=Path("chaos"), show_default=True, help="Folder of logs."
)
@click.option("--json", "report", type=click.Path(path_type=Path), help="Where to write the report.")
def chaos(
    *,
    seed: int | None,
    faults: int,
    posts: int,
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
    """
    from pipeline_poc.chaos import report as reports  # noqa: PLC0415 - needs the embedded extra
    from pipeline_poc.chaos.campaign import play  # noqa: PLC0415
    from pipeline_poc.chaos.catalogue import FAULTS  # noqa: PLC0415
    from pipeline_poc.chaos.runs import draw  # noqa: PLC0415

    console = Console(stderr=True)
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    names = [name for name in FAULTS if not named or any(part in name for part in named)]
    if not names:
        raise click.BadParameter(f"no fault is called so; there are: {', '.join(FAULTS)}", param_hint="--fault")
    numbers = range(faults) if only is None else [only]
    plans = [draw(seed, number, max(4, posts // faults), names) for number in numbers]
    again = ["pipeline-poc", "chaos", "--seed", str(seed), "--faults", str(faults), "--posts", str(posts)]
    again += [word for part in named for word in ("--fault", part)]

    begun = time.monotonic()
    bar = Progress(TextColumn(f"seed {seed}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console)
    with bar:
        task = bar.add_task("", total=len(plans))

        def show(result: "RunResult") -> None:
            bar.advance(task)
            if result.violations:
                number = result.plan.seed.partition("/")[2]
                log = logs / f"run-{result.plan.seed.replace('/', '-')}.log"
                for line in reports.sentences(result, log, shlex.join([*again, "--run", number])):
                    console.print(line, markup=False, highlight=False, soft_wrap=True)

        try:
            results = play(plans, logs, jobs=min(jobs, len(plans)), exitfirst=exitfirst, on_result=show)
        except RuntimeError as error:
            raise ServiceStartError(str(error)) from error
    duration_s = time.monotonic() - begun
    console.print(reports.table(results))
    click.echo(json.dumps({"seed": seed, **reports.summary(results, duration_s)}, indent=1))
    if report:
        report.write_text(json.dumps({"seed": seed, **reports.document(results, duration_s)}, indent=1))
    if any(result.violations for result in results):
        sys.exit(EXIT_NOT_OK)
