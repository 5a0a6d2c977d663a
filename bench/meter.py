"""What a contender's process measures: time, and the CPU and memory of itself, its helpers and the servers."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_MB = 2**20


@dataclass(slots=True)
class Lap:
    """One measured stretch.

    Attributes:
        posts: How many were moved, to relate time to; 0 where nothing was.
        cpu_s: User and system time of our own processes, by their part in it.
        server_cpu_s: The same of the servers.
        peak_mb: Largest resident memory that our processes had since they began.
        figures: Whatever else was measured, by a name that ends with its unit.
    """

    name: str
    posts: int = 0
    wall_s: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=dict)
    server_cpu_s: dict[str, float] = field(default_factory=dict)
    peak_mb: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)


class Meter:
    """Collects laps.

    Args:
        servers: Process id of each server, by name.
    """

    def __init__(self, servers: Mapping[str, int]) -> None:
        self._servers = {name: psutil.Process(pid) for name, pid in servers.items()}
        self.laps: list[Lap] = []

    @contextmanager
    def lap(self, name: str, posts: int = 0) -> Iterator[Lap]:
        """Measure what is done inside; what it sets in the lap afterwards wins."""
        lap = Lap(name, posts)
        servers = cpu_s(self._servers)
        own, begun = time.process_time(), time.perf_counter()
        yield lap
        lap.wall_s = time.perf_counter() - begun
        lap.cpu_s["client"] = time.process_time() - own
        lap.server_cpu_s = {name: after - servers[name] for name, after in cpu_s(self._servers).items()}
        lap.peak_mb["client"] = peak_mb(psutil.Process())
        self.laps.append(lap)


def cpu_s(processes: Mapping[str, psutil.Process]) -> dict[str, float]:
    """Return the CPU seconds that each of these processes has used; the kernel counts in hundredths."""
    times = {name: process.cpu_times() for name, process in processes.items()}
    return {name: used.user + used.system for name, used in times.items()}


def peak_mb(process: psutil.Process) -> float:
    """Return the largest resident memory that a process ever had; where only Linux knows, what it has now."""
    # Not ru_maxrss: a child inherits there what its parent had when it forked.
    status = Path(f"/proc/{process.pid}/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024 / _MB
    return float(process.memory_info().rss) / _MB
