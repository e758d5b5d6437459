"""This machine: uv, the bundled venvs, the disk, the port, and the ECS task where there is one."""

import errno
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import httpx
import uv

from executor.commands.checks.findings import Findings
from executor.settings import Settings

LOW_SPACE: Final = 2_000_000_000  # bytes; a venv of the CLI takes 0.2 to 2 GB
_UV_ENDS_WITHIN: Final = 10.0  # seconds
_ANSWERS_WITHIN: Final = 3.0  # seconds
_WORK, _SPACE, _CACHE, _BUNDLED = "work folder", "free space", "uv's cache", "bundled venvs"
_PORT: Final = "metrics port"


async def check_uv(findings: Findings) -> None:
    """Look for uv, without which no venv is built."""
    way_out = "install the executor anew: uv comes with it"
    try:
        with anyio.fail_after(_UV_ENDS_WITHIN):
            binary = uv.find_uv_bin()
            done = await anyio.run_process([binary, "--version"], stderr=subprocess.STDOUT)
    except (OSError, subprocess.CalledProcessError, TimeoutError) as error:
        findings.fault("uv", f"does not run: {error or 'no answer'}", way_out)
    else:
        findings.good("uv", f"{done.stdout.decode(errors='replace').strip()} at {binary}")


def check_disk(settings: Settings, env: Mapping[str, str], findings: Findings) -> None:
    """Look at the work folder, the space in it, and whether venvs can share files with uv's cache."""
    work = settings.work_dir
    try:
        there = _existing(work)
        with _made(work, there), tempfile.TemporaryFile(dir=work):
            pass
    except OSError as error:
        verb = "written to" if work.exists() else "made"
        words = f"{work} can't be {verb} ({error.strerror or error})"
        findings.fault(_WORK, words, "set DATAHUB_EXECUTOR_WORK_DIR to a folder that can")
        findings.skipped(_SPACE, "the work folder can't be used")
        findings.skipped(_CACHE, "the work folder can't be used")
        return
    findings.good(_WORK, str(work) if there == work else f"{work}, made at the start")
    _check_space(there, findings)
    _check_cache(work, env, findings)


async def _say_who_has(port: int, findings: Findings) -> None:
    """An executor that runs beside this command has its port, and no fault."""
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=_ANSWERS_WITHIN) as client:
            answer = await client.get(f"http://127.0.0.1:{port}/metrics")
        ours = "datahub_executor_" in answer.text
    except httpx.HTTPError:
        ours = False
    if ours:
        findings.good(_PORT, f"{port} is that of an executor which runs here")
    else:
        findings.warning(
            _PORT,
            f"{port} is taken by something in the executor's way",
            "set DATAHUB_EXECUTOR_METRICS_PORT to another one, or to 0 for none",
        )


async def check_port(settings: Settings, findings: Findings) -> None:
    """Listen where health and metrics are served, and stop at once."""
    port = settings.metrics_port
    if not port:
        findings.good(_PORT, "off, as DATAHUB_EXECUTOR_METRICS_PORT is 0")
        return
    try:
        async with await anyio.create_tcp_listener(local_port=port):
            pass
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            await _say_who_has(port, findings)
        else:
            findings.fault(
                _PORT,
                f"{port} can't be used ({error.strerror})",
                "set DATAHUB_EXECUTOR_METRICS_PORT to another one, or to 0 for none",
            )
    else:
        findings.good(_PORT, f"{port} is free")


def check_bundled(settings: Settings, findings: Findings) -> None:
    """Look for the venvs that come with the image."""
    folder = settings.bundled_venv_path
    complete = (path.parent.parent for path in folder.glob("*-bundled/bin/python"))
    names = sorted(
        path.name.removesuffix("-bundled") for path in complete if (path / "bin" / "datahub").exists()
    )
    if names:
        findings.good(_BUNDLED, f"{', '.join(names)} in {folder}")
    elif settings.dependency_resolution_enabled:
        findings.good(_BUNDLED, f"none in {folder}; only version 'bundled' needs them")
    else:
        findings.fault(
            _BUNDLED,
            f"none in {folder}, and nothing is installed at run time (INGESTION_DEPENDENCY_RESOLUTION_ENABLED)",
            "use an image with bundled venvs, or set DATAHUB_BUNDLED_VENV_PATH to where they are",
        )


async def check_ecs(env: Mapping[str, str], findings: Findings) -> None:
    """Say what the ECS task has, if this is one (contract, section 7)."""
    address = env.get("ECS_CONTAINER_METADATA_URI_V4")
    if not address:
        return
    try:
        async with httpx.AsyncClient(timeout=_ANSWERS_WITHIN, trust_env=False) as client:
            answer = await client.get(f"{address}/task")
            task = answer.raise_for_status().json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        findings.warning(
            "ECS task", f"its metadata can't be read: {error}", "check ECS_CONTAINER_METADATA_URI_V4"
        )
    else:
        findings.good("ECS task", _task_in_words(task if isinstance(task, dict) else {}))


def _task_in_words(task: Mapping[str, Any]) -> str:
    limits = task.get("Limits") or {}
    cpu = f"{limits['CPU']:g} vCPU" if limits.get("CPU") else "no CPU limit"
    memory = f"{limits['Memory']:,} MiB of memory" if limits.get("Memory") else "no memory limit"
    name = f"{task.get('Family', 'unknown')}:{task.get('Revision', '?')}"
    return f"{name} in {task.get('Cluster', 'an unknown cluster')}, {cpu}, {memory}"


def _existing(path: Path) -> Path:
    """The nearest of a path and its parents that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


@contextmanager
def _made(folder: Path, there: Path) -> Iterator[None]:
    """The folder, made as the executor does; what was made below `there` is removed again."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield
    finally:
        for made in (folder, *folder.parents):
            if made == there:
                break
            try:
                made.rmdir()
            except OSError:  # never made, or somebody uses it by now
                continue


def _check_space(there: Path, findings: Findings) -> None:
    free = shutil.disk_usage(there).free
    words = f"{free / 1e9:.1f} GB"
    if free < LOW_SPACE:
        way_out = "free some, or give the task more storage (ECS: ephemeralStorage)"
        findings.warning(_SPACE, f"{words}, and a venv takes 0.2 to 2 GB", way_out)
    else:
        findings.good(_SPACE, words)


def _check_cache(work: Path, env: Mapping[str, str], findings: Findings) -> None:
    cache = Path(env.get("UV_CACHE_DIR") or work / "uv-cache").absolute()
    try:
        same = _existing(cache).stat().st_dev == _existing(work / "venvs").stat().st_dev
    except OSError as error:
        findings.warning(
            _CACHE, f"{cache} can't be seen ({error.strerror})", "set UV_CACHE_DIR to another folder"
        )
        return
    if same:
        findings.good(_CACHE, f"{cache}, on the work folder's file system: venvs share its files")
    else:
        findings.warning(
            _CACHE,
            f"{cache} is on another file system than the work folder: each venv is a whole copy",
            "unset UV_CACHE_DIR, or put both on one file system",
        )
