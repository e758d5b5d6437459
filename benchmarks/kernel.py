"""What the kernel says of processes: their memory, their processor time, and which came from which."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")  # a second of processor time, as /proc counts it


@dataclass(frozen=True)
class Memory:
    """A process's memory in bytes: shared pages shared out (PSS), in full (RSS), only its own (USS)."""

    pss: int
    rss: int
    uss: int

    @classmethod
    def of(cls, pid: int) -> "Memory":
        """Read from the kernel's roll-up of all mappings."""
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        sizes = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        return cls(sizes["Pss"], sizes["Rss"], sizes["Private_Clean"] + sizes["Private_Dirty"])


def cpu_seconds(pid: int, *, with_children: bool = False) -> float:
    """A process's own processor time so far; or with that of the children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return sum(map(int, fields[11 : 15 if with_children else 13])) / TICKS


def children(pid: int) -> dict[int, str]:
    """Its own children that have not been reaped: number and command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError):  # it ended meanwhile
            if entry.name.isdigit() and _parent(entry) == pid:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(entry.name)] = command.decode(errors="replace")
    return found


def descendants(pid: int) -> list[int]:
    """Its children, theirs, and so on."""
    own = list(children(pid))
    return own + [further for child in own for further in descendants(child)]


def _parent(entry: Path) -> int:
    return int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
