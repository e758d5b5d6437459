"""What the tests of warm starts share: a guard, warm parents, and venvs whose CLI is a script."""

import math
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from structlog.testing import capture_logs

from executor.ingestion.guard import Guard, open_guard
from executor.ingestion.process import Command, Exit, run_process, start_cold
from executor.ingestion.venv import Venv
from executor.ingestion.warm import WarmParent
from executor.ingestion.warm_pool import WarmParents
from executor.lease import Lease
from tests.integration.service import IMPORTED
from tests.integration.trees import LIBRARY, Output

DEADLINE = 60.0  # seconds; only a failing test takes them
MIB = 1024 * 1024
BUDGET = 500 * MIB
IDLE = 600.0


def make_venv(folder: Path, script: str, imported: str = "") -> Venv:
    """A venv whose CLI is a script that knows LIBRARY; `imported` is run when the CLI is imported."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "datahub").write_text(LIBRARY + script)
    (folder / "bin" / "datahub.py").write_text(IMPORTED + imported)
    (folder / "bin" / "python").symlink_to(sys.executable)
    return Venv(folder, None, Path(sys.executable), (sys.executable, "-Su", str(folder / "bin" / "datahub")))


@dataclass
class Stage:
    """An executor's guard and warm parents, and venvs that tests make."""

    guard: Guard
    parents: WarmParents
    folder: Path
    env: dict[str, str]

    def venv(self, script: str, imported: str = "", name: str = "venv") -> Venv:
        return make_venv(self.folder / name, script, imported)

    def command(self, venv: Venv, *args: str, **given: Any) -> Command:
        given = {"env": self.env, "cwd": self.folder, "stdin": b"recipe", **given}
        return Command([*venv.command, *args], **given)

    async def parent(
        self, venv: Venv, env: Mapping[str, str] | None = None, kind: str = "fake"
    ) -> WarmParent:
        with anyio.fail_after(DEADLINE):
            found = await self.parents.find(venv, kind, env or self.env)
        assert found is not None
        return found

    async def refused(self, venv: Venv, env: Mapping[str, str] | None = None) -> str:
        """Why runs start cold; it is said once."""
        with capture_logs() as said, anyio.fail_after(DEADLINE):
            assert await self.parents.find(venv, "fake", env or self.env) is None
            assert await self.parents.find(venv, "fake", env or self.env) is None
        [event] = said
        assert (event["event"], event["venv"]) == ("runs_start_cold", str(venv.path))
        return str(event["reason"])

    async def run(self, warm: bool, command: Command, venv: Venv, **options: Any) -> tuple[Exit, bytes]:
        start = (await self.parent(venv)).start if warm else start_cold
        output = Output()
        with anyio.fail_after(DEADLINE):
            ended = await run_process(command, output, guard=self.guard, start=start, **options)
        return ended, output.data


@asynccontextmanager
async def open_stage(folder: Path, budget: int = BUDGET, idle: float = IDLE) -> AsyncIterator[Stage]:
    async with open_guard() as guard:
        async with guard.watch(Lease(math.inf)):
            pass
        env = {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
        stage = Stage(guard, WarmParents(lambda _: env, guard, budget, idle), folder, env)
        async with stage.parents.open():
            yield stage


def alive(venv: Venv) -> list[int]:
    """Processes that come from a venv, its warm parent among them: its path is in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(venv.path).encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue  # it ended meanwhile
    return found
