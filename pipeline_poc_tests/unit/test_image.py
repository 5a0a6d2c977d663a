"""The image: what it is made of is there, and its health check is that of the program which a container runs."""

import itertools
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.applications import Starlette

from pipeline_poc.embedded import free_port
from pipeline_poc.pulse import PREFIX, pulse
from pipeline_poc.settings import Settings
from pipeline_poc_tests.acceptance.programs import until
from pipeline_poc_tests.scripts import script
from pipeline_poc_tests.web.serving import served

ROOT = Path(__file__).parents[2]
PYTHON = ["/venv/bin/python", "/venv/bin/pipeline-poc"]


@pytest.fixture
def check() -> Any:
    """The health check of a container."""
    return script("healthcheck").check


@pytest.mark.parametrize("name", ["127.0.0.1", "pipeline.example.org"])
def test_a_web_server_is_healthy_while_it_answers(check: Any, name: str, tmp_path: Path) -> None:
    """A web server is healthy whatever it is called, with its stores away, and until it is gone."""
    settings = Settings(
        _env_file=None,
        mongo_url=SecretStr("mongodb://127.0.0.1:9"),
        redis_url=SecretStr("redis://127.0.0.1:9"),
        sql_url=SecretStr("mysql://user@127.0.0.1:9/posts"),
        web_allowed_hosts=(name,),
        data_dir=tmp_path,
    )
    with served(settings, Starlette()) as web:
        port = web.base_url.port
        assert port
        assert check([*PYTHON, "webserver", "--workspace", "workspace.yaml", ""], port)
    with pytest.raises(ConnectionRefusedError):
        check(["/sbin/docker-init", "--", "pipeline-poc", "webserver", ""], port)


def test_a_code_server_is_healthy_while_it_listens(check: Any) -> None:
    """A code server is healthy while its port takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = ["dagster", "api", "grpc", "--host", "0.0.0.0", "--port", str(server.getsockname()[1]), ""]
        assert check(command, free_port())
    with pytest.raises(ConnectionRefusedError):
        check(command, free_port())


def test_what_serves_nobody_is_healthy(check: Any) -> None:
    """A command that serves nobody is asked nothing."""
    assert check([*PYTHON, "token", ""], free_port())


def test_workers_are_healthy_while_each_shows_life(check: Any, tmp_path: Path) -> None:
    """A worker is healthy while its file is touched; one that hangs is ill whatever others do; a dead one is nobody."""
    command = ["/sbin/docker-init", "--", "pipeline-poc", "worker", "--count", "2", ""]
    assert not check(command, free_port(), str(tmp_path))
    with pulse(lambda: True, tmp_path):
        assert check(command, free_port(), str(tmp_path))
        with subprocess.Popen(["sleep", "60"]) as other:
            silent = tmp_path / f"{PREFIX}{other.pid}"
            silent.touch()
            for age_s in (600, -600):  # Before and after its clock was set back.
                os.utime(silent, (time.time() - age_s,) * 2)
                assert not check(command, free_port(), str(tmp_path))
            other.kill()
        assert check(command, free_port(), str(tmp_path))
        assert not silent.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_pulse_stops_with_what_it_tells_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is touched only while the main thread is at work, and never through a link that somebody put there."""
    monkeypatch.setattr("pipeline_poc.pulse._BEAT_S", 0.01)
    asked = itertools.count()
    with pulse(lambda: next(asked) < 0, tmp_path):
        [file] = tmp_path.iterdir()
        os.utime(file, (0, 0))
        until(lambda: next(asked) > 9, "it was asked")
        assert file.stat().st_mtime == 0
    target = tmp_path / "target"
    target.touch()
    os.utime(target, (0, 0))
    file.symlink_to(target)
    with pulse(lambda: True, tmp_path):
        assert target.stat().st_mtime == 0


def test_what_is_copied_reaches_the_builder() -> None:
    """What the Dockerfile copies is there, and is just what .dockerignore lets through."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copies = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    copied = {name for names in copies for name in names if not name.startswith("--")}
    assert all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied == {line.removeprefix("!") for line in ignored if line.startswith("!")}
