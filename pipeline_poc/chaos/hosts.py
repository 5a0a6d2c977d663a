"""Several hosts on one machine: network namespaces, joined by a bridge. Needs root, and `ip` of iproute2."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

ADDRESS = "10.213.77.1"
"""Of this machine, as the others see it."""
_BRIDGE = "drill"


class HostsError(Exception):
    """There can be no hosts here; the message says why."""


def ip(*arguments: str) -> None:
    """Run `ip` of iproute2.

    Raises:
        HostsError: It is not installed, or fails.
    """
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise HostsError("network namespaces need `ip`: sudo apt-get install iproute2") from None
    if done.returncode:
        raise HostsError(f"network namespaces need root on Linux: `ip {' '.join(arguments)}`: {done.stderr.strip()}")


@contextmanager
def hosts(count: int) -> Iterator[dict[str, str]]:
    """Make hosts of network namespaces, joined by a bridge on which this one is the first; yields addresses by name.

    Raises:
        HostsError: This machine does not let us.
    """
    made = {f"{_BRIDGE}-{number}": f"{ADDRESS[:-1]}{number + 1}" for number in range(1, count + 1)}
    with ExitStack() as stack:
        ip("link", "add", _BRIDGE, "type", "bridge")
        stack.callback(ip, "link", "del", _BRIDGE)
        ip("addr", "add", f"{ADDRESS}/24", "dev", _BRIDGE)
        ip("link", "set", _BRIDGE, "up")
        for name, address in made.items():
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", name, "master", _BRIDGE, "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", name, "link", "set", device, "up")
        yield made


def set_link(host: str, *, is_up: bool) -> None:
    """Cut a host off, or bring it back; its programs go on either way."""
    ip("link", "set", host, "up" if is_up else "down")
