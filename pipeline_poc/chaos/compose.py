"""What docker-compose.yml says, as processes: for rehearsals on one machine, where there is no Docker."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_poc.processes import signal_group, spawn

_HEALTHY_S = 120.0
"""Longest wait for a program to become healthy, and for another command to end."""
_LOOK_S = 0.3
_VARIABLE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?:(?P<kind>:-|:\?)(?P<rest>[^}]*))?\}")


@dataclass(frozen=True, slots=True)
class Service:
    """A service of docker-compose.yml, with the values of a rehearsal.

    Attributes:
        command: Program and arguments.
        health: Command that ends with 0 while it is healthy.
        grace_s: How long it has to end once it was asked to.
    """

    command: list[str]
    environment: dict[str, str]
    health: list[str]
    grace_s: float


def interpolated(text: str, variables: Mapping[str, str]) -> str:
    """Return a text with its variables filled in, as compose does.

    Raises:
        KeyError: One is not set, and has to be.
    """

    def value(match: re.Match[str]) -> str:
        if not match["name"]:
            return "$"
        found = variables.get(match["name"], "")
        if not found and match["kind"] == ":?":
            raise KeyError(match["rest"])
        return found or match["rest"] or ""

    return _VARIABLE.sub(value, text)


def service(compose: Mapping[str, Any], name: str, variables: Mapping[str, str], places: Mapping[str, str]) -> Service:
    """Take a service out of docker-compose.yml.

    Args:
        compose: The document.
        name: Of the service.
        variables: What the environment file sets.
        places: What stands in place of names of hosts and of ports, which containers have for themselves.
    """

    def filled(value: object) -> str:
        text = str(value)
        for old, new in places.items():
            text = text.replace(old, new)
        return interpolated(text, variables)

    given = compose["services"][name]
    environment = given.get("environment", {})
    # The image's own entry point and health check, where the service has none. There is no first process to look at.
    command = [filled(word) for word in [*given.get("entrypoint", ["pipeline-poc"]), *given["command"]]]
    health = [filled(word) for word in given.get("healthcheck", {}).get("test", [])][1:]
    return Service(
        command,
        {key: filled(value) for key, value in environment.items() if value is not None}
        # One without a value is handed on.
        | {key: variables[key] for key, value in environment.items() if value is None and key in variables},
        health or ["./healthcheck", *command],
        float(str(given.get("stop_grace_period", "10s")).removesuffix("s")),
    )


def lay_out(compose: Mapping[str, Any], project: Path, folder: Path, *, host: str, port: int) -> None:
    """Make a folder with what volumes and image bring for our services: Dagster's two files, and the health check.

    Args:
        compose: The document.
        project: Its folder.
        folder: To be made.
        host: Where the code server is.
        port: And its port.
    """
    folder.mkdir(exist_ok=True)
    mounted = next(text for text in compose["x-pipeline"]["volumes"] if "dagster.yaml" in text).split(":")[0]
    shutil.copyfile(project / mounted, folder / "dagster.yaml")
    workspace = (project / "deploy" / "workspace.yaml").read_text(encoding="utf-8")
    workspace = workspace.replace("host: code", f"host: {host}").replace("port: 4000", f"port: {port}")
    (folder / "workspace.yaml").write_text(workspace, encoding="utf-8")
    shutil.copy(project / "scripts" / "healthcheck", folder)


def first_statements(compose: Mapping[str, Any], project: Path) -> list[str]:
    """Return what MySQL is made to execute when its volume is new."""
    mounted = next(text for text in compose["services"]["mysql"]["volumes"] if "initdb.d" in text).split(":")[0]
    lines = (project / mounted).read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("--"))
    return [statement for part in text.split(";") if (statement := part.strip())]


class Part:
    """A program that is stopped and started as Docker does it with a container.

    Args:
        name: For people.
        service: What it runs.
        folder: Its working directory and Dagster's; one of its own, as a container has a disk.
        release: Folder that has the package `pipeline_poc`.
        before: What stands before each of its commands.
    """

    def __init__(self, name: str, service: Service, folder: Path, release: Path, *, before: Sequence[str] = ()) -> None:
        self.name = name
        self.service = service
        self.folder = folder
        self.release = release
        self.starts = 0
        self._before = before
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What its processes are started with."""
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(self.release),
            "PYTHONUNBUFFERED": "1",
            "HOME": str(self.folder),
            "DAGSTER_HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "LANG": "C.UTF-8",
            "no_proxy": "*",
        } | self.service.environment

    @property
    def log(self) -> Path:
        """What it has printed since its last start."""
        return self.folder / f"log.{self.starts}"

    @property
    def pid(self) -> int | None:
        """Of its first process; None while it is stopped."""
        return self._process.pid if self._process else None

    @property
    def has_died(self) -> bool:
        """Whether it ended though nobody asked it to."""
        return self._process is not None and self._process.poll() is not None

    def run(self, *command: str, timeout_s: float = _HEALTHY_S) -> "subprocess.CompletedProcess[str]":
        """Run another command with the same environment to its end."""
        return subprocess.run(
            [*self._before, *(command or self.service.command)],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def start(self) -> None:
        """Start it."""
        self.starts += 1
        with self.log.open("wb") as log:
            command = [*self._before, *self.service.command]
            self._process = spawn(command, self.environment, log, self.folder)

    def wait(self) -> None:
        """Wait until it is healthy.

        Raises:
            RuntimeError: It takes too long, or it has ended.
        """
        deadline = time.monotonic() + _HEALTHY_S
        while self.run(*self.service.health).returncode:
            if self.has_died or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not become healthy:\n{self.log.read_text()[-2000:]}")
            time.sleep(_LOOK_S)

    def stop(self) -> bool:
        """Ask it to stop, and kill it when its grace is over; returns whether it stopped by itself."""
        process, self._process = self._process, None
        if process is None:
            return True
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(self.service.grace_s)
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
        # With its first process, all of a container's processes are gone.
        signal_group(process.pid, signal.SIGKILL)
        process.wait()
        return ended
