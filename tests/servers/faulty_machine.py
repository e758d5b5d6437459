"""A machine with a full disk or a clock that is set, for the processes that get its environment.

A library put before libc (LD_PRELOAD) answers their system calls in the kernel's stead: that takes no rights,
and the code under test is the shipped one, as are the programs that it starts.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("faulty_machine.c")
_OFFSET_SIZE = 8  # bytes, signed


@dataclass(frozen=True, slots=True)
class FaultyMachine:
    """Its faults come and go at once, for processes that run already, too."""

    library: Path
    disk: Path
    folder: Path

    @classmethod
    def make(cls, folder: Path, disk: Path) -> "FaultyMachine":
        """One whose disk holds what is below `disk`; it needs `folder` for itself.

        Raises:
            FileNotFoundError: there is no C compiler.
        """
        folder.mkdir(parents=True, exist_ok=True)
        library = folder / "faulty_machine.so"
        command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True, capture_output=True)
        machine = cls(library, disk, folder)
        machine.set_clock(0)
        return machine

    @property
    def env(self) -> dict[str, str]:
        """What puts a process on this machine."""
        return {
            "LD_PRELOAD": str(self.library),
            "FULL_DISK": str(self.disk),
            "FULL_DISK_SIGN": str(self._sign),
            "CLOCK_OFFSET": str(self._offset),
        }

    def fill_disk(self) -> None:
        """From now on nothing can be made or written there; what is there can be read and removed."""
        self._sign.touch()

    def free_space(self) -> None:
        """The disk takes everything again."""
        self._sign.unlink()

    def set_clock(self, seconds: int) -> None:
        """Let the clock be ahead of the true time, or behind it if negative. The monotonic one goes on."""
        if not self._offset.exists():
            self._offset.touch()
        with self._offset.open("r+b") as file:
            file.write(seconds.to_bytes(_OFFSET_SIZE, "little", signed=True))

    @property
    def _sign(self) -> Path:
        return self.folder / "disk-is-full"

    @property
    def _offset(self) -> Path:
        return self.folder / "clock-offset"
