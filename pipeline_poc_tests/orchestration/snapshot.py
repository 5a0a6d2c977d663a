"""All definitions as a text that a person can read; `python -m pipeline_poc_tests.orchestration.snapshot` writes it."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from dagster import Definitions
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph

PATH = Path(__file__).with_name("definitions.txt")


def describe(defs: Definitions) -> str:
    """Return the names of all definitions, and what their users see or rely on of each."""
    repository, graph = defs.get_repository_def(), defs.resolve_asset_graph()
    jobs = [job for job in repository.get_all_jobs() if not job.name.startswith("__")]
    sections: dict[str, Iterable[str]] = {
        "assets": _assets(graph),
        "checks": (
            f"{key.asset_key.to_user_string()}: {key.name}{_if(graph.get_check_spec(key).blocking, 'blocking')}"
            for key in graph.asset_check_keys
        ),
        "jobs": (
            f"{job.name}: {', '.join(sorted(job.graph.node_dict))}{_if(job.tags, str(dict(sorted(job.tags.items()))))}"
            for job in jobs
        ),
        "schedules": (
            f"{each.name}: {each.job_name} at {each.cron_schedule} {each.execution_timezone},"
            f" {each.default_status.value}"
            for each in repository.schedule_defs
        ),
        "sensors": (
            f"{each.name}: every {each.minimum_interval_seconds} s, {each.default_status.value}"
            for each in repository.sensor_defs
        ),
        "resources": repository.get_top_level_resources(),
    }
    return "\n".join(f"{name}\n" + "".join(f"  {line}\n" for line in sorted(lines)) for name, lines in sections.items())


def _assets(graph: AssetGraph) -> Iterator[str]:
    for node in graph.asset_nodes:
        facts = {
            "from": ", ".join(sorted(key.to_user_string() for key in node.parent_keys)),
            "group": node.group_name,
            "owners": ", ".join(node.owners),
            "kinds": ", ".join(sorted(node.kinds)),
            "code version": node.code_version,
            "pools": ", ".join(sorted(node.pools or ())),
            "io manager": node.io_manager_key if node.is_executable else None,
            "freshness": node.freshness_policy,
            "automation": node.automation_condition and node.automation_condition.get_label(),
        }
        kind = "external" if node.is_external else "asset"
        known = "".join(f"\n    {name}: {value}" for name, value in facts.items() if value)
        yield f"{node.key.to_user_string()} ({kind}){known}"


def _if(condition: object, text: str) -> str:
    return f", {text}" if condition else ""


if __name__ == "__main__":
    from pipeline_poc_tests.definitions import defs as ours

    PATH.write_text(describe(ours), encoding="utf-8")
