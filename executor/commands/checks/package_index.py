"""The package index: whether uv finds the CLI there, as it must for a venv."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import anyio
import uv

from executor.commands.checks.findings import Findings
from executor.ingestion.tool import run_tool
from executor.ingestion.venv_build import Uv
from executor.ingestion.venv_spec import CLI, VenvError, VenvSpec, venv_spec
from executor.settings import Settings

ANSWERS_WITHIN: Final = 15.0  # seconds; uv tries a few times
NAME: Final = "package index"
_WAY_OUT: Final = (
    "set UV_DEFAULT_INDEX to an index that the executor reaches, or HTTPS_PROXY; else only the CLI version "
    "'bundled' and venvs that are built already can run"
)


async def check_index(settings: Settings, env: Mapping[str, str], findings: Findings) -> None:
    """Look the CLI up, past uv's cache; nothing to do where nothing is installed at run time."""
    if not settings.dependency_resolution_enabled:
        return
    # Without the cache, which would answer in the index's place.
    asked = {name: value for name, value in env.items() if name != "UV_CACHE_DIR"}
    said = bytearray()

    async def run(
        argv: Sequence[str], environ: Mapping[str, str], stdin: bytes | None, output: Callable[[bytes], None]
    ) -> int:
        def hear(chunk: bytes) -> None:
            said.extend(chunk)
            output(chunk)

        return await run_tool(argv, environ, stdin, hear)

    began = anyio.current_time()
    try:
        spec = _spec(asked)
        # /tmp may be read-only.
        within = settings.work_dir if settings.work_dir.is_dir() else None
        with tempfile.TemporaryDirectory(dir=within) as folder, anyio.fail_after(ANSWERS_WITHIN):
            place = Path(folder)
            program = Uv(binary=Path(uv.find_uv_bin()), run=run, environ=asked, cache=place / "cache")
            version = await program.latest(spec, place)
    except VenvError:
        words = _core(spec.mask(said.decode(errors="replace")))
        findings.warning(NAME, f"uv finds no {CLI}: {words}", _WAY_OUT)
    except TimeoutError:
        findings.warning(NAME, f"uv found no {CLI} in {ANSWERS_WITHIN:g} s", _WAY_OUT)
    except OSError as error:
        findings.warning(NAME, f"uv could not look {CLI} up: {error}", _WAY_OUT)
    else:
        findings.good(NAME, f"{CLI} {version} is there, found in {anyio.current_time() - began:.1f} s")


def _spec(env: Mapping[str, str]) -> VenvSpec:
    return venv_spec(
        version=None,
        plugin=None,
        extra_plugins=(),
        extra_requirements=(),
        dependency_resolution_enabled=True,
        environ=env,
    )


def _core(printed: str) -> str:
    """What uv said went wrong, and the last of its causes; all of it where it has none."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    causes = [line.partition(":")[2].strip() for line in lines if line.startswith("Caused by:")]
    if not causes:
        return " ".join(lines) or "it did not say why"
    return f"{lines[0].removeprefix('error: ')}: {causes[-1]}"
