"""What deploy/kubernetes names exists: settings, commands, probes, metrics, labels; and Kubernetes would take it."""

import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from dagster._cli import create_dagster_cli
from dagster._core.instance.config import dagster_instance_config
from dagster._daemon.cli import create_dagster_daemon_cli

from pipeline_poc.cli import cli
from pipeline_poc.errors import SettingsError
from pipeline_poc.settings import Settings, load_settings
from pipeline_poc.web.auth import check_binding

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
KUBERNETES_VERSIONS = ("1.30", "1.37")
"""The oldest one that knows all fields, and the newest one whose schemas are there."""

KEDA_KINDS = ("ScaledObject", "TriggerAuthentication")

Document = dict[str, Any]


def documents(path: Path) -> list[Document]:
    """Return the documents of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


MANIFESTS = [
    document
    for path in sorted(FOLDER.rglob("*.yaml"))
    if path.name not in ("kustomization.yaml", "dagster.yaml", "dagster-values.yaml")
    for document in documents(path)
]
VALUES = documents(FOLDER / "dagster-values.yaml")[0]
DAEMON = VALUES["dagsterDaemon"]
VARIABLES = dict(
    line.split("=", 1)
    for line in (FOLDER / "config" / "settings.env").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
)
PROGRAMS: dict[str, click.Command] = {
    "pipeline-poc": cli,
    "dagster": create_dagster_cli(),  # type: ignore[no-untyped-call]
    "dagster-daemon": create_dagster_daemon_cli(),
}
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def of_kind(*kinds: str) -> list[Document]:
    """Return the manifests of these kinds."""
    found = [manifest for manifest in MANIFESTS if manifest["kind"] in kinds]
    assert found, kinds
    return found


def named(kind: str, name: str) -> Document:
    """Return one manifest."""
    (found,) = [manifest for manifest in of_kind(kind) if manifest["metadata"]["name"] == name]
    return found


PODS = {manifest["metadata"]["name"]: manifest["spec"]["template"] for manifest in of_kind("Deployment", "Job")}


def containers() -> Iterator[tuple[str, Document]]:
    """Yield the containers of our pods, and that of Dagster's daemon in the same shape."""
    for name, pod in PODS.items():
        for container in pod["spec"]["containers"]:
            yield name, container
    image = f"{DAEMON['image']['repository']}:{DAEMON['image']['tag']}"
    env_from = [{"configMapRef": one} for one in DAEMON["envConfigMaps"]] + [
        {"secretRef": one} for one in DAEMON["envSecrets"]
    ]
    yield "daemon", DAEMON | {"image": image, "envFrom": env_from}


def test_every_variable_is_a_setting() -> None:
    """Whatever a container gets from a ConfigMap, a Secret or its own list is read by us, or by Dagster."""
    secret = named("Secret", "pipeline-poc")["stringData"]
    own = {entry["name"] for _, container in containers() for entry in container.get("env", [])}
    settings = {name.upper() for name in Settings.model_fields}
    strangers = {name for name in {*VARIABLES, *secret, *own} - settings if not name.startswith("DAGSTER_")}
    assert strangers == set()
    assert {"MONGO_URL", "REDIS_URL", "SQL_URL"} <= set(secret), "no store may be an embedded one"
    for name, container in containers():
        assert container["envFrom"] == [
            {"configMapRef": {"name": "pipeline-poc"}},
            {"secretRef": {"name": "pipeline-poc"}},
        ], name


def test_the_settings_are_good_ones_and_the_example_of_secrets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With real secrets all of it is valid; as long as they say CHANGE-ME nothing starts."""
    secret = named("Secret", "pipeline-poc")["stringData"]
    for name, value in {**VARIABLES, **secret}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        load_settings(env_file=None)
    unchanged = {name for name, value in secret.items() if "CHANGE-ME" in value and not name.startswith("DAGSTER_")}
    assert {problem.partition(" ")[0] for problem in str(refused.value).split("; ")} == unchanged
    assert len(unchanged) == 5

    real = {name: secret[name].replace("CHANGE-ME", "x" * 32) for name in unchanged}
    for name, value in {**real, "API_OPERATE_TOKEN_HASHES": "0" * 64}.items():
        monkeypatch.setenv(name, value)
    settings = load_settings(env_file=None)
    check_binding(settings)

    assert settings.environment == "production"
    assert settings.web_host == "0.0.0.0"
    assert str(settings.dagster_home) == "/dagster"


def test_passwords_are_examples() -> None:
    """Nobody's real password stands here, and none is used that everybody knows."""
    text = (FOLDER / "secret.example.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"://\w*:([^@]+)@|password: (\S+)", text)) == {("CHANGE-ME", ""), ("", "CHANGE-ME")}


def test_commands_exist(tmp_path: Path) -> None:
    """Each command is one of its program, with options that it has."""
    shutil.copy(ROOT / "deploy" / "workspace.yaml", tmp_path)  # where the test runs, as in the image
    commands = [["dagster-daemon", "run", "-w", "workspace.yaml"], DAEMON["livenessProbe"]["exec"]["command"]]
    commands += [[*c.get("command", ["pipeline-poc"]), *c["args"]] for name, c in containers() if name != "daemon"]
    for program, *arguments in commands:
        command = PROGRAMS[program]
        while isinstance(command, click.Group):
            command = command.commands[arguments.pop(0)]
        command.make_context(program, arguments)


def test_probes_ask_for_what_exists() -> None:
    """Each HTTP probe asks an endpoint that needs no token, under a name by which the web server may be called."""
    allowed = VARIABLES["WEB_ALLOWED_HOSTS"].split(",")
    asked = set()
    for _, container in containers():
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if request := container.get(probe, {}).get("httpGet"):
                (host,) = [header["value"] for header in request["httpHeaders"] if header["name"] == "Host"]
                assert host in allowed
                assert f"\n### GET {request['path']}\n" in API, request
                asked.add(request["path"])
    assert asked == {"/health/live", "/health/ready"}


def test_a_worker_is_probed_by_what_the_image_has() -> None:
    """The worker's probe runs the health check that the image has, which finds the folder that the worker writes to."""
    (worker,) = PODS["pipeline-poc-worker"]["spec"]["containers"]
    [program] = worker["livenessProbe"]["exec"]["command"]
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f'CMD ["{program}"]' in dockerfile
    assert "/tmp" in {mount["mountPath"] for mount in worker["volumeMounts"]}
    assert "TMPDIR" not in VARIABLES


def test_a_slow_answer_is_no_failed_probe() -> None:
    """Readiness may take as long as its checks may."""
    (web,) = PODS["pipeline-poc-web"]["spec"]["containers"]
    assert web["readinessProbe"]["timeoutSeconds"] > Settings.model_fields["health_timeout_s"].default


def test_ports_agree() -> None:
    """Services, containers, probes, network policies, Dagster's workspace and the settings name the same ports."""
    ports = {port["name"]: port["containerPort"] for _, c in containers() for port in c.get("ports", [])}
    assert ports["http"] == int(VARIABLES.get("WEB_PORT", Settings.model_fields["web_port"].default))
    (server,) = VALUES["dagsterWebserver"]["workspace"]["servers"]
    (location,) = documents(ROOT / "deploy" / "workspace.yaml")[0]["load_from"]
    assert location["grpc_server"] == {"host": server["host"], "port": server["port"], "location_name": server["name"]}
    assert named("Service", server["host"])["spec"]["ports"][0]["port"] == server["port"] == ports["grpc"]
    (code,) = PODS["pipeline-poc-code"]["spec"]["containers"]
    assert code["args"][code["args"].index("--port") + 1] == str(ports["grpc"])
    for service in of_kind("Service"):
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
    incoming = {
        port["port"]
        for policy in of_kind("NetworkPolicy")
        for rule in policy["spec"].get("ingress", [])
        for port in rule["ports"]
    }
    assert incoming == set(ports.values())


def test_every_selector_finds_a_pod() -> None:
    """Deployments, Services, budgets and network policies select labels that pods have."""
    labels = [pod["metadata"]["labels"] for pod in PODS.values()]
    labels.append({"app.kubernetes.io/name": "dagster", "component": "dagster-daemon"})  # as the chart sets them
    selectors = [m["spec"]["selector"] for m in of_kind("Service")]
    selectors += [m["spec"]["selector"]["matchLabels"] for m in of_kind("Deployment", "PodDisruptionBudget")]
    for policy in of_kind("NetworkPolicy"):
        rules = [*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])]
        peers = [peer for rule in rules for peer in rule.get("from", []) + rule.get("to", [])]
        own = [policy["spec"], *(peer for peer in peers if "namespaceSelector" not in peer)]
        selectors += [one["podSelector"].get("matchLabels", {}) for one in own]
    for selector in selectors:
        assert any(selector.items() <= found.items() for found in labels), selector


def test_all_run_the_same_image() -> None:
    """One image, in the version of the package."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    kustomizations = [documents(FOLDER / name / "kustomization.yaml")[0] for name in ("app", "storage")]
    assert [one["images"] for one in kustomizations] == [[{"name": "pipeline-poc", "newTag": version}]] * 2
    images = {(name == "daemon", container["image"]) for name, container in containers()}
    assert images == {(False, "pipeline-poc"), (True, f"pipeline-poc:{version}")}


def test_no_container_may_more_than_it_needs() -> None:
    """Not root, nothing to write but its own volumes, no rights of the kernel, requests and a limit of memory."""
    pods = [pod["spec"]["securityContext"] for pod in PODS.values()] + [DAEMON["podSecurityContext"]]
    for pod in pods:
        assert pod["runAsNonRoot"]
        assert pod["runAsUser"] == 1000
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    for name, container in containers():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}, name
        assert "memory" in container["resources"]["limits"], name
        assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {VARIABLES["DAGSTER_HOME"], "/tmp"}


def test_a_worker_gets_the_time_to_stop() -> None:
    """Kubernetes kills a worker well after the worker would have given its batch back."""
    grace = float(VARIABLES.get("SHUTDOWN_GRACE_S", Settings.model_fields["shutdown_grace_s"].default))
    assert PODS["pipeline-poc-worker"]["spec"]["terminationGracePeriodSeconds"] > 2 * grace


def test_scaling_looks_at_what_exists() -> None:
    """KEDA looks at RQ's list of our queue, and at a metric that is served; more workers than jobs are for nothing."""
    spec = named("ScaledObject", "pipeline-poc-worker")["spec"]
    queue, lag = spec["triggers"]
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert spec["scaleTargetRef"]["name"] in PODS
    assert "replicas" not in named("Deployment", "pipeline-poc-worker")["spec"], "that would undo KEDA's choice"
    assert spec["maxReplicaCount"] == int(VARIABLES.get("QUEUE_WINDOW", defaults["queue_window"]))
    assert queue["metadata"]["listName"] == f"rq:queue:{VARIABLES.get('QUEUE_NAME', defaults['queue_name'])}"
    (metric,) = re.findall(r"pipeline_\w+", lag["metadata"]["query"])
    assert f"\n| `{metric}` |" in API
    access = named("TriggerAuthentication", queue["authenticationRef"]["name"])["spec"]["secretTargetRef"]
    assert all(entry["key"] in named("Secret", entry["name"])["stringData"] for entry in access)


def test_one_instance_for_all_of_production(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster takes the file, which compose mounts, too; it differs from the one in the root where a server has to."""
    monkeypatch.setenv("DAGSTER_MYSQL_URL", "mysql+mysqlconnector://somebody@nowhere/dagster")
    path = FOLDER / "config" / "dagster.yaml"
    shutil.copy(path, tmp_path)
    config, _ = dagster_instance_config(str(tmp_path))
    assert config["storage"]["custom"]["config"] == {"mysql_url": {"env": "DAGSTER_MYSQL_URL"}}
    here, there = documents(ROOT / "dagster.yaml")[0], documents(path)[0]
    assert there.keys() - here.keys() == {"storage", "compute_logs", "concurrency"}
    assert {key for key in here if there[key] != here[key]} == {"run_coordinator"}
    compose = documents(ROOT / "docker-compose.yml")[0]
    mounted = f"./{path.relative_to(ROOT)}:/dagster/dagster.yaml:ro"
    for name in ("dagster-storage", "code", "webserver", "daemon", "worker"):
        assert mounted in compose["services"][name]["volumes"]


def test_the_chart_is_that_of_the_locked_dagster() -> None:
    """Chart and library have the same version."""
    lock = (ROOT / "requirements-production.lock").read_text(encoding="utf-8")
    (version,) = re.findall(r"^dagster==(\S+)", lock, re.MULTILINE)
    for path in (FOLDER / "dagster-values.yaml", ROOT / "docs" / "kubernetes.md"):
        assert set(re.findall(r"\b1\.\d+\.\d+\b", path.read_text(encoding="utf-8"))) == {version}, path


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_kubernetes_takes_the_manifests(version: str) -> None:
    """Each manifest fits the schemas of Kubernetes, without a field too many; it does not know KEDA's kinds."""
    for manifest in MANIFESTS:
        if manifest["kind"] not in KEDA_KINDS:
            kubernetes_validate.validate(manifest, version, strict=True)
