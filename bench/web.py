"""Load on the web server's endpoints while a migration runs; see README.md."""

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pymongo

from bench.source import await_answer
from pipeline_poc import embedded
from pipeline_poc.records import content_hash, next_version

PATHS = ("/health/live", "/health", "/data-migration/stats", "/data-ingestion/stats", "/metrics", "/pipeline/overview")
BULK = 10_000
FIRST_ID = 1_000_000
"""Below it are the posts that the source serves."""


def fill(mongo_url: str, posts: int) -> None:
    """Write migrated posts past the pipeline."""
    at = datetime.now(UTC).replace(microsecond=0)
    with pymongo.MongoClient[dict[str, Any]](mongo_url) as client:
        collection = client["pipeline_poc"]["posts"]
        for first in range(FIRST_ID, FIRST_ID + posts, BULK):
            ids = range(first, min(first + BULK, FIRST_ID + posts))
            collection.insert_many([_document(i, at) for i in ids], ordered=False)
            print(f"\rfilled {ids[-1] - FIRST_ID + 1:,} of {posts:,}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def _document(external_id: int, at: datetime) -> dict[str, Any]:
    post = (external_id, external_id % 1000 + 1, "a title of usual length", "a body " * 20)
    return {
        "externalId": post[0],
        "userId": post[1],
        "title": post[2],
        "body": post[3],
        "ingestedAt": at,
        "migrated": True,
        "migratedAt": at,
        "contentHash": content_hash(*post),
        "version": next_version(None, at),
        "changedAt": at,
        "batchId": "filled-by-the-benchmark",
    }


def wrk(url: str, connections: int, seconds: int) -> dict[str, float]:
    """Ask a URL for so long; returns requests a second, and latencies in milliseconds."""
    command = ["wrk", "--latency", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", url]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    latencies = re.findall(r"^\s+(50|90|99)%\s+(\S+)\s*$", said, re.MULTILINE)
    found = {f"p{share}_ms": _ms(text) for share, text in latencies}
    rate = re.search(r"Requests/sec:\s+([0-9.]+)", said)
    errors = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    return {
        "connections": connections,
        "requests_per_s": float(rate[1]) if rate else 0.0,
        **found,
        "errors": int(errors[1]) if errors else 0,
    }


def _ms(text: str) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return round(float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit], 3)


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Start the pipeline, fill it, and ask each endpoint."""
    source_port, web_port = embedded.free_port(), embedded.free_port()
    source = [sys.executable, "-m", "pipeline_poc.stand_in", "--port", str(source_port)]
    environment = os.environ | {
        "DATA_DIR": str(folder / "data"),
        "WEB_PORT": str(web_port),
        "SOURCE_URL": f"http://127.0.0.1:{source_port}/posts",
        "RATE_LIMIT_READ": "100000000/second",
        "LOG_LEVEL": "WARNING",
        "SOURCE_TIMEOUT_S": "120",
    }
    base = f"http://127.0.0.1:{web_port}"
    with subprocess.Popen(source) as stand_in, (folder / "up.log").open("w") as log:
        up = subprocess.Popen(
            [sys.executable, "-m", "pipeline_poc", "up"], env=environment, cwd=folder, stdout=log, stderr=log
        )
        try:
            await_answer(f"{base}/health/live", 120)
            mongo_url = embedded.running("mongo", folder / "data")
            assert mongo_url
            fill(mongo_url, arguments.posts)
            print(f"migrating {arguments.migrating:,} posts meanwhile", file=sys.stderr)
            results = []
            for path in PATHS:
                for connections in (1, arguments.connections):
                    _keep_busy(mongo_url, arguments.migrating)
                    results.append({"path": path} | wrk(base + path, connections, arguments.seconds))
                    print(_line(results[-1]), file=sys.stderr)
            return results
        finally:
            up.send_signal(signal.SIGINT)
            up.wait(60)
            stand_in.terminate()


def _keep_busy(mongo_url: str, posts: int) -> None:
    """Put migrated posts back into the backlog, as a repair would; the next tick adopts them."""
    with pymongo.MongoClient[dict[str, Any]](mongo_url) as client:
        update = {"$set": {"migrated": False, "migratedAt": None, "batchId": None}}
        ids = {"$gte": FIRST_ID, "$lt": FIRST_ID + posts}
        client["pipeline_poc"]["posts"].update_many({"externalId": ids, "migrated": True}, update)


def _line(result: dict[str, Any]) -> str:
    numbers = "  ".join(f"{result.get(name, 0):10,.2f}" for name in ("requests_per_s", "p50_ms", "p90_ms", "p99_ms"))
    return f"{result['path']:<24} {result['connections']:>3} connections  {numbers}  errors {result['errors']}"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--posts", type=int, default=100_000, help="posts stored")
    parser.add_argument("--migrating", type=int, default=20_000, help="posts migrated while each endpoint is asked")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-web-") as folder:
        results = measure(arguments, Path(folder))
    memory_gb = psutil.virtual_memory().total / 2**30
    versions = {name: version(name) for name in ("dagster", "fastapi", "uvicorn", "pymongo", "pipeline-poc")}
    machine = f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores, {memory_gb:.0f} GiB"
    print(f"{machine}\n{versions}\n{arguments.posts:,} posts stored, {arguments.migrating:,} migrating\n")
    print(f"{'':<24} {'':>15}  {'requests/s':>10}  {'p50 ms':>10}  {'p90 ms':>10}  {'p99 ms':>10}")
    print("\n".join(map(_line, results)))
    if arguments.json:
        figures = {"machine": machine, "versions": versions, "posts": arguments.posts, "results": results}
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
