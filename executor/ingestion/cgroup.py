"""What the kernel's control group says about memory."""

from functools import cache
from pathlib import Path

_MEMBERSHIP = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


def oom_kills(membership: Path = _MEMBERSHIP, root: Path = _ROOT) -> int:
    """How many processes the out-of-memory killer has taken in this container so far; 0 where unknown."""
    source = _source(membership, root)
    if source is None:
        return 0
    try:
        lines = source.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


@cache
def _source(membership: Path, root: Path) -> Path | None:
    """Our own group's `memory.events` (version 2) or `memory.oom_control` (version 1)."""
    for candidate in _candidates(membership, root):
        if candidate.is_file():
            return candidate
    return None


def _candidates(membership: Path, root: Path) -> list[Path]:
    """The places in which it may be: a container sees its own group as the root, or its path on the host."""
    found: list[Path] = []
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found += [root / path.lstrip("/") / "memory.events", root / "memory.events"]
        elif "memory" in controllers.split(","):
            found += [
                root / "memory" / path.lstrip("/") / "memory.oom_control",
                root / "memory" / "memory.oom_control",
            ]
    return found
