"""Hosts for a rehearsal: what is made is removed again, and where nothing can be made, a sentence says why."""

from pathlib import Path

import pytest

from pipeline_poc.chaos.hosts import HostsError, hosts, set_link


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What was said to `ip`, a line for each call; it does nothing, and refuses what has `refused` in it."""
    program = tmp_path / "ip"
    program.write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/said\ncase "$*" in *refused*) echo "not permitted" >&2; exit 2;; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "said"


def test_hosts_are_removed_again(said: Path) -> None:
    """Everything that was made is gone; each host has an address of its own."""
    with hosts(2) as made:
        assert made == {"drill-1": "10.213.77.2", "drill-2": "10.213.77.3"}
        set_link("drill-2", is_up=False)
    lines = said.read_text().splitlines()
    assert "link set drill-2 down" in lines
    assert lines[-3:] == ["netns del drill-2", "netns del drill-1", "link del drill"]


def test_hosts_that_can_not_be(said: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without rights, and without iproute2, one sentence says so."""
    with pytest.raises(HostsError, match=r"^network namespaces need root on Linux: `ip link set refused up`: not perm"):
        set_link("refused", is_up=True)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HostsError, match=r"^network namespaces need `ip`: sudo apt-get install iproute2$"), hosts(1):
        pass
