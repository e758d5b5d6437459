"""docker/Dockerfile carried out without a container engine: its own steps, in folders or clean roots."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import ROOT
from tests.servers.executor import ExecutorProcess

DOCKERFILE = ROOT / "docker" / "Dockerfile"
DEBIAN = "bookworm"  # that of the Dockerfile's base image
_NETWORK = ("PIP_", "UV_", "SSL_CERT_", "HTTP_", "HTTPS_", "NO_PROXY")  # how this machine reaches an index
_NETWORK_FILES = ("etc/resolv.conf", "etc/pip.conf", "etc/ssl/certs/ca-certificates.crt")
_PATHS = ("/opt/", "/tmp/datahub")  # those of the Dockerfile that are moved below a folder


@dataclass
class Stage:
    """`instructions` are pairs of a name and its text, continued lines joined."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        """The texts of all instructions of that name."""
        return [text for found, text in self.instructions if found == name]

    def words(self, name: str) -> list[str]:
        """The words of the last instruction of that name, written as a JSON list."""
        words: list[str] = json.loads(self.all(name)[-1])
        return words


def read_dockerfile() -> dict[str, Stage]:
    """The stages by name, in their order; what stands before the first is in the stage with an empty name."""
    stage = Stage("", "")
    stages = {"": stage}
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, text = line.partition(" ")
        if name == "FROM":
            base, _, called = text.partition(" AS ")
            stage = stages[called] = Stage(called, base)
        elif name:
            stage.instructions.append((name, text.strip()))
    return stages


def variables(stage: Stage, instruction: str) -> dict[str, str]:
    """What its ENV or ARG instructions set, a variable a word; an ARG without a value is left out."""
    pairs = (word.partition("=") for text in stage.all(instruction) for word in text.split())
    return {name: value.strip('"') for name, sign, value in pairs if sign}


def command_of(run: str) -> tuple[str, dict[str, str]]:
    """A RUN's command, and what it has mounted (target to source, in the context)."""
    mounts: dict[str, str] = {}
    words = run.split()
    while words[0].startswith("--mount="):
        options = dict(part.split("=") for part in words.pop(0).removeprefix("--mount=").split(","))
        if options["type"] == "bind":
            mounts[options["target"]] = options["source"]
    return " ".join(words), mounts


class Image:
    """What the Dockerfile's stages come to below `folder`.

    In clean roots (`base`: a Debian with Python, copied for each base stage) its commands run as they are, with
    the root changed. Else they run on this machine, with the paths that they get moved below the folder.
    """

    def __init__(self, folder: Path, args: Mapping[str, str], base: Path | None = None) -> None:
        self.stages = read_dockerfile()
        self.base = base
        self._folder = folder
        self._args = args
        self._roots: dict[str, Path] = {}

    def root(self, name: str) -> Path:
        """Where a stage was built."""
        return self._roots[name]

    def at(self, name: str, text: str) -> str:
        """`text` with the paths that it has in the stage turned into those that it has here."""
        if self.base is None:
            for path in _PATHS:
                text = text.replace(path, f"{self._roots[name]}{path}")
        return text

    def build(self, name: str, *, alone: bool = False) -> None:
        """Carry out a stage, in the place of the one that it goes on from; `alone`: on a copy of it."""
        stage = self.stages[name]
        before = self._roots.get(stage.base)
        root = before if before is not None and not alone else self._folder / name
        self._roots[name] = root
        if root is not before:
            source = self.base if before is None else before
            if source is None:
                root.mkdir(parents=True)
            else:
                subprocess.run(["cp", "-a", "--reflink=auto", source, root], check=True)
        workdir = self.stages[stage.base].all("WORKDIR") if before is not None else []
        where = (stage.all("WORKDIR") or workdir or ["/"])[0]
        (root / where.lstrip("/")).mkdir(parents=True, exist_ok=True)
        for instruction, text in stage.instructions:
            if instruction == "COPY":
                self._copy(root, where, text)
            elif instruction == "RUN":
                self._run(name, root, where, text, {**variables(stage, "ARG"), **self._args})

    def _copy(self, root: Path, where: str, text: str) -> None:
        source = ROOT
        *paths, target = text.split()
        if paths[0].startswith("--from="):
            source = self._roots[paths.pop(0).removeprefix("--from=")]
        place = root / Path(where, target).relative_to("/")
        for path in paths:
            found = source / path.lstrip("/")
            if found.is_dir():
                skip = shutil.ignore_patterns("__pycache__") if source == ROOT else None
                shutil.copytree(found, place, symlinks=True, ignore=skip, dirs_exist_ok=True)
            else:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy2(found, place)

    def _run(self, name: str, root: Path, where: str, text: str, args: Mapping[str, str]) -> None:
        command, mounts = command_of(text)
        cache = os.environ.get("UV_CACHE_DIR") or str(Path("~/.cache/uv").expanduser())
        network = {key: value for key, value in os.environ.items() if key.startswith(_NETWORK)}
        env = {"PATH": os.environ["PATH"], **network, "HOME": "/root", **args}
        if self.base is None:
            env |= {"PYTHON": _python_with_pip(), "UV_CACHE_DIR": cache, "HOME": str(root)}
            argv, cwd = ["sh", "-c", self.at(name, command)], root / where.lstrip("/")
        else:
            for target, source in mounts.items():
                shutil.copytree(ROOT / source, root / target.lstrip("/"))
            for file in filter(lambda file: Path("/", file).exists(), _NETWORK_FILES):
                shutil.copy2(Path("/", file), root / file)
            (root / "root/.cache/uv").mkdir(parents=True, exist_ok=True)
            env["UV_CACHE_DIR"] = "/root/.cache/uv"  # this machine's: it spares the downloads
            mount = 'mount --bind "$0" "$1/root/.cache/uv" && exec chroot "$1" sh -c "cd $2 && $3"'
            argv, cwd = ["unshare", "--mount", "sh", "-c", mount, cache, str(root), where, command], Path("/")
        done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        for target in mounts if self.base is not None else ():
            shutil.rmtree(root / target.lstrip("/"))

    def runs_as(self, name: str, built: str) -> None:
        """Let what was built as `built` stand for a stage that can't be built on this machine itself."""
        self._roots[name] = self._roots[built]

    def command(self, name: str, *arguments: str) -> list[str]:
        """What starts the stage's program here: its entry point, and its own arguments or these."""
        stage = self.stages[name]
        entry, given = stage.words("ENTRYPOINT"), list(arguments) or stage.words("CMD")
        if self.base is None:
            entry = entry[entry.index("--") + 1 :]  # the init is the container's alone
        return self.exec(name, *entry, *given)

    def exec(self, name: str, *argv: str) -> list[str]:
        """What starts a program of the stage here; it is found in the executor's venv."""
        if self.base is not None:
            return [*_contained(self._roots[name]), *argv]
        program = self._roots[name] / "opt/datahub-executor/bin" / argv[0]
        return [str(program), *(self.at(name, word) for word in argv[1:])]

    def environment(self, name: str) -> dict[str, str]:
        """What the container's processes find set."""
        env = variables(self.stages["system"], "ENV")
        env["PATH"] = env["PATH"].replace("$PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        env = {key: self.at(name, value) for key, value in env.items()}
        if self.base is None:
            env["DATAHUB_EXECUTOR_WORK_DIR"] = self.at(name, "/tmp/datahub")
            env["DATAHUB_BUNDLED_VENV_PATH"] = self.at(name, "/opt/datahub/venvs")
        return env


def clean_root(place: Path) -> Path:
    """A minimal Debian with Python and pip, as the base image is one; made once, as root, with debootstrap."""
    if not place.exists():
        new = place.with_name(f"{place.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        packages = "--include=ca-certificates,python3,python3-venv,python3-pip"
        subprocess.run(
            ["debootstrap", "--variant=minbase", packages, DEBIAN, new], check=True, capture_output=True
        )
        new.rename(place)
    return place


def _python_with_pip() -> str:
    return str(Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}"))


def _contained(root: Path) -> list[str]:
    """As a container is run: its own processes, a read-only root with its /tmp, no rights, a volume to write to."""
    uid = read_dockerfile()["system"].all("USER")[-1]
    script = (
        'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && mount -t proc proc "$0/proc" && '
        'mount -t tmpfs tmpfs "$0/tmp" && mkdir "$0/tmp/datahub" && mount -o remount,ro "$0/tmp" && '
        'mount -t tmpfs -o mode=0700,uid=${1%:*},gid=${1#*:} tmpfs "$0/tmp/datahub" && '
        'root=$0 user=$1 && shift && exec chroot --userspec="$user" "$root" "$@"'
    )
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, str(root), uid]


class ContainerProcess(ExecutorProcess):
    """The image's program with its log, as `docker run` would have it."""

    def __init__(self, image: Image, argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        super().__init__(env, log, argv)
        self._contained = image.base is not None

    def first(self) -> Path:
        """The /proc entry of the process that gets the container's signals: in a container, its number 1."""
        pid = self.process.pid
        if self._contained:
            [pid] = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return Path(f"/proc/{pid}")

    async def stop(self) -> int:
        """Its exit code after SIGTERM."""
        os.kill(int(self.first().name), signal.SIGTERM)
        return await self.ended()


@asynccontextmanager
async def container(
    image: Image, name: str, *arguments: str, env: Mapping[str, str], log: Path
) -> AsyncIterator[ContainerProcess]:
    """A stage's program, running; killed at the end if it still does."""
    whole = {**image.environment(name), **env}
    async with ContainerProcess(image, image.command(name, *arguments), whole, log).running() as process:
        yield process
