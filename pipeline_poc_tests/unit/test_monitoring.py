"""Alerts, dashboard and compose's monitoring: they ask only for what there is, and each alert has its page."""

import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from pipeline_poc.cli import cli

ROOT = Path(__file__).parents[2]
RULES_PATH = ROOT / "deploy/prometheus/rules.yml"
RULES = [rule for group in yaml.safe_load(RULES_PATH.read_text("utf-8"))["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/pipeline.json").read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RUNBOOK = ROOT / "docs/operations.md"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
MONITORING = ("prometheus", "grafana")

COMPOSE_OPTIONS = {
    "build": set(),
    "exec": {"-T"},
    "logs": {"--tail"},
    "ps": set(),
    "restart": set(),
    "run": {"--rm", "--no-deps"},
    "stop": set(),
    "up": {"--detach", "--wait", "--no-deps", "--scale"},
}

OF_PROMETHEUS = {"up": {"job", "instance"}, "ALERTS": {"alertname", "alertstate"}}
OF_EVERY_SERIES = {"job", "instance"}
_SELECTOR = re.compile(r"(?<![\w:])(up|ALERTS|pipeline[\w:]*)(?![\w:(])(?:\{([^}]*)\})?")
_GROUPED = re.compile(r"\b(?:by|without|ignoring|on) \(([^)]*)\)")
_ROW = re.compile(r"^\| `(\w+)` \| (counter|gauge|histogram) \| (.*?) \|", re.MULTILINE)


@cache
def exported() -> dict[str, set[str]]:
    """Return the labels of each series, by name: what docs/api.md lists, which is held against a live answer."""
    series: dict[str, set[str]] = {}
    for name, kind, labels in _ROW.findall((ROOT / "docs/api.md").read_text("utf-8")):
        own = set(re.findall(r"\w+", labels))
        if kind == "histogram":
            series |= {f"{name}_bucket": own | {"le"}, f"{name}_sum": own, f"{name}_count": own}
        else:
            series[name] = own
    return series


def known() -> dict[str, set[str]]:
    """Return the labels of everything that can be asked for, beside those that Prometheus adds."""
    return exported() | OF_PROMETHEUS | {name: set() for name in RECORDED}


def unknown(expression: str, legend: str = "") -> list[str]:
    """Return the series and labels of an expression that don't exist."""
    there, wrong, labels = known(), [], set(OF_EVERY_SERIES)
    outside = re.sub(r"\"[^\"]*\"", '""', expression)
    for name, matchers in _SELECTOR.findall(outside):
        if name not in there:
            wrong.append(name)
            continue
        own = there[name] | OF_EVERY_SERIES
        wrong += [f"{name}{{{label}}}" for label in re.findall(r"(\w+)(?==|!)", matchers) if label not in own]
        labels |= own
    used = [*re.findall(r"\w+", " ".join(_GROUPED.findall(outside))), *re.findall(r"\{\{(\w+)\}\}", legend)]
    return wrong + [label for label in used if label not in labels]


def expressions() -> Iterator[tuple[str, str, str]]:
    """Yield place, expression and legend of all that is asked of Prometheus."""
    for rule in RULES:
        yield rule.get("alert") or rule["record"], rule["expr"], ""
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"], target["legendFormat"]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["name"], annotation["expr"], annotation["titleFormat"]


def test_only_what_is_exported_is_asked_for() -> None:
    """Every metric and label in rules and dashboard is one that the pipeline exports, or that a rule records."""
    assert "pipeline_lag_seconds" in exported()
    for place, expression, legend in expressions():
        assert _SELECTOR.search(expression), place
        assert not unknown(expression, legend), f"{place}: {expression}"


@pytest.mark.parametrize(
    "expression",
    ["pipeline_log_seconds", "max by (state) (pipeline_lag_seconds)", 'pipeline_posts{stat="x"}', "pipeline:x:sum > 0"],
)
def test_the_check_sees_what_is_wrong(expression: str) -> None:
    """A metric, a label or a recorded series that does not exist is found."""
    assert unknown(expression)


def test_dashboard_shows_every_metric() -> None:
    """Nothing that is exported goes unseen: each metric is on the dashboard, or in what a rule records for it."""
    shown = " ".join([*(target["expr"] for panel in PANELS for target in panel["targets"]), *RECORDED.values()])
    unseen = {name.removesuffix("_bucket") for name in exported() if not re.search(rf"\b{name}\b", shown)}
    assert {name for name in unseen if not name.endswith(("_sum", "_count"))} <= {
        "pipeline_quarantined_by_reason_total",  # Counts a bad record with each ingestion that sees it.
        "pipeline_dead_letters_total",  # Those that wait are shown.
        "pipeline_batches_migrated_total",  # Posts are.
        "pipeline_backlog_batches",
        "pipeline_queue_depth",  # Is one of the states of pipeline_queue_jobs.
    }


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_says_what_to_do(name: str) -> None:
    """An alert has severity, summary, description and its heading in the runbook, with a command to look with."""
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert set(alert["annotations"]) == {"summary", "description", "runbook"}
    assert alert["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
    section = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", RUNBOOK.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert section
    assert "```sh\n" in section[1]
    tested = (ROOT / "deploy/prometheus/rules_test.yml").read_text("utf-8")
    assert re.search(rf'"{name}"', tested), "rules_test.yml does not test it"


def test_the_runbook_has_no_other_alerts() -> None:
    """Below "Runbook" there are the alerts, in the order of the rules."""
    _, _, runbook = RUNBOOK.read_text("utf-8").partition("\n## Runbook\n")
    assert re.findall(r"^### (\w+)$", runbook, re.MULTILINE) == list(ALERTS)


def test_the_runbook_names_what_exists() -> None:
    """Each command and option in docs/operations.md is one of the command line, each path one of docs/api.md."""
    text = RUNBOOK.read_text("utf-8")
    commands = re.findall(r"(?:^|`)(?:docker run --rm )?pipeline-poc ([a-z][^`|#\n]*)", text, re.MULTILINE)
    assert len(commands) > 20
    for command in commands:
        found: click.Command = cli
        words = command.split()
        while isinstance(found, click.Group):
            assert words[0] in found.commands, command
            found = found.commands[words.pop(0)]
        options = {option for parameter in found.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, command
    paths = set(re.findall(r"localhost:3000(/[\w/-]*)", text))
    assert paths
    assert paths <= set(re.findall(r"^### GET (\S+)$", (ROOT / "docs/api.md").read_text("utf-8"), re.MULTILINE))


def test_the_commands_for_compose_name_what_exists() -> None:
    """Each `docker compose` in docs/operations.md has options that we use on purpose, and services that there are."""
    commands = re.findall(r"docker compose ((?:[^`|#\n\\']|'[^']*')*)", RUNBOOK.read_text("utf-8"))
    assert len(commands) > 30
    for command in commands:
        words = shlex.split(command.replace("--profile monitoring", ""))
        options = COMPOSE_OPTIONS[words[0]]
        named: list[str] = []
        for word in words[1:]:
            if word == ">" or (named and words[0] in ("exec", "run")):  # What follows is for the container.
                break
            if word.startswith("-"):
                assert word in options, command
            elif not word.isdecimal() and "=" not in word:
                named.append(word)
        assert set(named) <= COMPOSE["services"].keys(), command


def test_each_panel_can_be_read() -> None:
    """A panel has a title of its own, a description, a unit, and the provisioned datasource; none covers another."""
    path = ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml"
    [source] = yaml.safe_load(path.read_text("utf-8"))["datasources"]
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert not cells & taken, panel["title"]
        assert grid["x"] + grid["w"] <= 24, panel["title"]
        taken |= cells
    for panel in PANELS:
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        for asked in (panel, *panel["targets"]):
            assert asked["datasource"] == {"type": source["type"], "uid": source["uid"]}, panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    titles = [panel["title"] for panel in PANELS if panel["type"] != "stat"]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", MONITORING)
def test_compose_keeps_monitoring_apart(name: str) -> None:
    """A service of monitoring starts only when asked for, without rights, and for this host alone."""
    service: dict[str, Any] = COMPOSE["services"][name]
    assert service["profiles"] == ["monitoring"]
    assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"])
    assert not service["user"].startswith("0")
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
    assert service["healthcheck"]["test"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    for volume in service["volumes"]:
        place = volume.split(":")[0]
        assert (ROOT / place).is_dir() if place.startswith("./") else place in COMPOSE["volumes"], volume


def test_prometheus_reaches_the_web_server() -> None:
    """The target is a service and a name that it listens to; the token is read from the secret that is mounted."""
    configuration = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text("utf-8"))
    [job] = configuration["scrape_configs"]
    [target] = job["static_configs"][0]["targets"]
    host, _, port = target.partition(":")
    web = COMPOSE["services"][host]
    assert web["environment"]["WEB_ALLOWED_HOSTS"].endswith(f",{host}")
    assert web["ports"] == [f"127.0.0.1:{port}:{port}"]
    [secret] = COMPOSE["services"]["prometheus"]["secrets"]
    assert job["authorization"] == {"credentials_file": f"/run/secrets/{secret}"}
    assert secret in COMPOSE["secrets"]
    assert all((RULES_PATH.parent / name).is_file() for name in configuration["rule_files"])
    assert set(re.findall(r'job="(\w+)"', RULES_PATH.read_text("utf-8"))) == {job["job_name"]}
