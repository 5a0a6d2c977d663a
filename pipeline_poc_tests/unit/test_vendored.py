"""What the status page takes from others is as its makers published it."""

import hashlib
import re
from pathlib import Path

import pipeline_poc

VENDOR = Path(pipeline_poc.__file__).parent / "web" / "static" / "vendor"
SCRIPT = Path(__file__).parents[2] / "scripts" / "vendor-uplot"


def test_files_are_what_the_readme_says() -> None:
    """Every vendored file stands in its README with the SHA-256 sum that it has, and nothing else lies there."""
    folders = [path for path in VENDOR.iterdir() if path.is_dir()]
    assert folders
    for folder in folders:
        readme = (folder / "README.md").read_text(encoding="utf-8")
        expected = {name: digest for digest, name in re.findall(r"^([0-9a-f]{64})  (\S+)$", readme, re.MULTILINE)}
        found = {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*")
            if path.is_file() and path.name != "README.md"
        }
        assert found == expected, f"{folder.name}: lay the files anew with scripts/vendor-{folder.name}"
        assert "LICENSE" in found


def test_readme_names_what_the_script_fetches() -> None:
    """Version and integrity hash in the README are those that the script insists on."""
    script = SCRIPT.read_text(encoding="utf-8")
    readme = (VENDOR / "uplot" / "README.md").read_text(encoding="utf-8")
    for name in ("version", "integrity"):
        value = re.search(rf"^{name}=(\S+)$", script, re.MULTILINE)
        assert value
        assert value[1] in readme
