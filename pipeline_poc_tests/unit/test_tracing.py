"""Tracing that is off, or can't be on: nothing is imported, and nothing is hindered."""

import subprocess
import sys

OFF = """
import os, sys
from pipeline_poc import tracing

os.environ.pop("OTEL_TRACES_EXPORTER", None)
endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
for variables in (
    {},
    {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
    {"OTEL_TRACES_EXPORTER": "none", **endpoint},
    {"OTEL_SDK_DISABLED": "true", **endpoint},
):
    os.environ.update(variables)
    tracing.start()
    assert tracing.ingesting() is tracing.storing(1) is tracing.processing("id", None, "worker"), variables
    with tracing.ingesting(), tracing.enqueueing({"id": None}, "queue"), tracing.storing(1):
        assert tracing.traceparent() is None
    tracing.flush()
    for name in variables:
        del os.environ[name]
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
CAN_NOT_BE_ON = """
import logging, os, sys
from pipeline_poc import tracing

logging.basicConfig(format="%(message)s")
os.environ["OTEL_TRACES_EXPORTER"] = "otlp"
os.environ["OTEL_BSP_MAX_QUEUE_SIZE"] = "1"
tracing.start()
sys.modules["opentelemetry.sdk.trace"] = None
tracing.start()
with tracing.ingesting():
    pass
"""


def run(code: str) -> str:
    """Run a program of its own; returns what it said."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_off() -> None:
    """Without an endpoint, or where it is switched off, a span is nothing, and OpenTelemetry is not imported."""
    assert run(OFF) == ""


def test_can_not_be_on() -> None:
    """Wrong variables, and a missing extra, cost a line of the log, and nothing else."""
    assert run(CAN_NOT_BE_ON).splitlines() == ["no traces", "no traces: the extra `tracing` is not installed"]
