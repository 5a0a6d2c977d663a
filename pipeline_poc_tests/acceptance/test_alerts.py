"""The alert rules, as Prometheus's own tool reads them."""

import subprocess
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"


def run(promtool: str, *arguments: str) -> str:
    """Run promtool beside the rules; returns what it says, which has to be that all is well."""
    command = [promtool, *arguments]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_configuration_and_rules_are_valid(promtool: str) -> None:
    """Prometheus takes its configuration and each rule, with their templates; no rule is there twice."""
    assert "valid prometheus config file" in run(promtool, "check", "config", "--syntax-only", "prometheus.yml")
    assert "SUCCESS" in run(promtool, "check", "rules", "--lint=all", "--lint-fatal", "rules.yml")


def test_alerts_fire_when_they_should(promtool: str) -> None:
    """Each alert fires in time for what it is about, and for nothing else."""
    assert "SUCCESS" in run(promtool, "test", "rules", "rules_test.yml")
