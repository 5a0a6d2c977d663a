"""The server behind https://jsonplaceholder.typicode.com, as its author publishes it on npm."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

import requests

from pipeline_poc.embedded import free_port
from pipeline_poc_tests.acceptance.programs import until

VERSION = "0.3.3"
_INSTALL_TIMEOUT_S = 240.0


def installed() -> Path:
    """Return the folder of the installed packages; installs them the first time.

    Raises:
        RuntimeError: npm can't; says why.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pipeline-poc-tests"
    packages = cache / f"jsonplaceholder-{VERSION}" / "node_modules"
    if packages.exists():
        return packages
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        install = ["npm", "install", "--prefix", folder, "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(
            [*install, f"jsonplaceholder@{VERSION}"],
            capture_output=True,
            text=True,
            timeout=_INSTALL_TIMEOUT_S,
            # The certificates that the machine trusts, not only those that come with Node.
            env=os.environ | {"NODE_OPTIONS": "--use-openssl-ca"},
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"npm can't install jsonplaceholder {VERSION}; it needs its registry:\n{done.stderr}")
        if not packages.exists():  # Another run may have been quicker.
            shutil.copytree(folder, packages.parent, symlinks=True)
    return packages


class JsonPlaceholder:
    """The server, on a copy of its data: it forgets what it is told to change, so the data is changed for it."""

    def __init__(self, folder: Path) -> None:
        self._packages = installed()
        self._home = folder / "jsonplaceholder"
        shutil.copytree(self._packages / "jsonplaceholder", self._home)
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where the posts are."""
        return f"http://127.0.0.1:{self._port}/posts"

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def served(self, entity: str = "posts") -> list[dict[str, Any]]:
        """Return the records of an entity that it serves."""
        with requests.Session() as session:
            session.trust_env = False
            records: list[dict[str, Any]] = session.get(self.url.replace("/posts", f"/{entity}"), timeout=10).json()
        return records

    def change(self, post_id: int, **values: Any) -> None:
        """Change a post, and start again to serve it."""
        path = self._home / "data.json"
        data = json.loads(path.read_text())
        next(post for post in data["posts"] if post["id"] == post_id).update(values)
        path.write_text(json.dumps(data))
        self._stop()
        self._start()

    def _start(self) -> None:
        environment = {"NODE_PATH": str(self._packages), "PORT": str(self._port), "NODE_ENV": "production"}
        self._process = subprocess.Popen(
            ["node", str(self._home / "index.js")],
            env={"PATH": os.environ["PATH"]} | environment,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        until(self._answers, "the JSONPlaceholder server answers")

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "node ended"
        try:
            return bool(self.served())
        except requests.ConnectionError:
            return False
