"""The UI in a real browser."""

import signal
import subprocess
from pathlib import Path

import pytest

from pipeline_poc.embedded import free_port
from pipeline_poc.stand_in import StandIn
from pipeline_poc_tests.acceptance.programs import Programs

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,900",
    # Time passes for the page only while it waits for nothing.
    "--virtual-time-budget=20000",
)


def test_asset_graph(on_servers: Programs, stand_in: StandIn, chromium: str, tmp_path: Path) -> None:
    """The page of the asset graph shows both assets and who made them."""
    port = free_port()
    program = on_servers.start("up", web_port=port, source_url=stand_in.url)
    program.wait_for("The UI is at")
    picture = tmp_path / "asset-graph.png"
    browser = subprocess.run(
        [
            chromium,
            *FLAGS,
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={picture}",
            "--dump-dom",
            f"http://localhost:{port}/asset-groups",
        ],
        env=on_servers.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    page = browser.stdout
    for text in ("raw_posts", "migrated_posts", "mongodb", "mysql"):
        assert text in page, f"{text} is not in {page[:2000]}\n{browser.stderr[-2000:]}"
    assert picture.read_bytes().startswith(b"\x89PNG")
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
