"""What the kernel's control group says about memory."""

from functools import cache
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


def oom_kills() -> int:
    """How many processes the out-of-memory killer has taken in this container so far; 0 where unknown."""
    source = _source()
    if source is None:
        return 0
    try:
        lines = source.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


@cache
def _source() -> Path | None:
    """Our own group's `memory.events` (version 2) or `memory.oom_control` (version 1)."""
    for candidate in _candidates():
        if candidate.is_file():
            return candidate
    return None


def _candidates() -> list[Path]:
    found: list[Path] = []
    try:
        memberships = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return found
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        if not controllers:
            found += [_ROOT / path.lstrip("/") / "memory.events", _ROOT / "memory.events"]
        elif "memory" in controllers.split(","):
            found += [
                _ROOT / "memory" / path.lstrip("/") / "memory.oom_control",
                _ROOT / "memory" / "memory.oom_control",
            ]
    return found
