#!/usr/bin/env python
"""Bake bundled venvs into an image: `bundle.py FOLDER CLI_VERSION SOURCES`.

SOURCES are source types, separated by commas or spaces; each gets `FOLDER/<source type>-bundled`, built as the
executor builds its venvs. Run it with the Python of the executor's venv.
"""

import difflib
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path

import anyio
import uv

from executor.ingestion.tool import run_tool
from executor.ingestion.venv_build import Uv
from executor.ingestion.venv_spec import BUNDLED, CLI, LATEST, VenvError, VenvSpec, venv_spec

_SOURCE_TYPES = "datahub.ingestion.source.plugins"  # the CLI's entry points


async def bundle(folder: Path, version: str, sources: Sequence[str], environ: Mapping[str, str]) -> None:
    """Build the venvs of `sources` in `folder`; what is there already goes untouched.

    Raises:
        VenvError: one can't be had, or this CLI has no such source type.
        OSError: the disk would not take it.
    """
    specs = {source: _spec(source, version, environ) for source in sources}
    # uv's cache lies beside the venvs, so that those share the files that they have in common, and goes with the
    # temporary folder. The venvs will be on a read-only disk: what isn't compiled now is compiled by each run.
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as name:
        building = Path(name)
        builder = Uv(
            binary=Path(uv.find_uv_bin()),
            run=run_tool,
            environ={**environ, "UV_COMPILE_BYTECODE": "1"},
            cache=building / "uv-cache",
        )
        for source, spec in specs.items():
            place = folder / f"{source}-{BUNDLED}"
            if not place.exists():
                await _build(builder, source, spec, Path(tempfile.mkdtemp(dir=building)), place)


def _spec(source: str, version: str, environ: Mapping[str, str]) -> VenvSpec:
    spec = venv_spec(
        version=version,
        plugin=source,
        extra_plugins=(),
        extra_requirements=(),
        dependency_resolution_enabled=True,
        environ=environ,
    )
    if spec.version == BUNDLED:
        raise VenvError(f"{BUNDLED} is no version to build: name one, or {LATEST}.")
    return spec


async def _build(builder: Uv, source: str, spec: VenvSpec, directory: Path, place: Path) -> None:
    version = await builder.latest(spec, directory) if spec.version == LATEST else spec.version
    built = await builder.build(spec, version, directory, _say)
    if source not in (known := _source_types(built.path)):
        meant = "".join(f" Is {name} meant?" for name in difflib.get_close_matches(source, known, 1))
        raise VenvError(
            f"{CLI} {built.cli_version} has no source {source!r} (BUNDLED_SOURCES).{meant} It has: "
            f"{', '.join(known)}."
        )
    built.path.rename(place)
    _say(f"{place}: {CLI} {built.cli_version}\n".encode())


def _source_types(venv: Path) -> list[str]:
    paths = [str(path) for path in venv.glob("lib/python*/site-packages")]
    found = (entry for dist in distributions(name=CLI, path=paths) for entry in dist.entry_points)
    return sorted(entry.name for entry in found if entry.group == _SOURCE_TYPES)


def _say(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> int:
    """Do as the module says; 1 where it can't be done, 2 where it is not said what."""
    if len(arguments) != 3 or not arguments[1]:
        sys.stderr.write("usage: bundle.py FOLDER CLI_VERSION SOURCES; none of the first two may be empty\n")
        return 2
    folder, version, sources = arguments
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        anyio.run(bundle, Path(folder), version, sources.replace(",", " ").split(), dict(os.environ))
    except (VenvError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
