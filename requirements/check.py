"""Say whether the locks beside this file still answer what pyproject.toml and the .in files ask for.

Reads these files and nothing else: no index is asked, so a newer release elsewhere is no reason to complain.
"""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
PROJECT = "datahub-remote-executor (pyproject.toml"  # how uv names a requirement of the project's own


def main() -> int:
    """Print each fault on a line of its own; 1 where there is one."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())
    core = project["project"]["dependencies"]
    extras = project["project"]["optional-dependencies"]
    everything = [*core, *extras["demo"], *project["dependency-groups"]["dev"]]
    faults = [
        *_faults("runtime.txt", core),
        *_faults("dev.txt", everything),
        *_faults("localstack.txt", _lines("localstack.in")),
        *_faults("cli.txt", _lines("cli.in")),
        *_faults("docker.txt", _lines("docker.in")),
        *_faults("deploy.txt", _lines("deploy.in")),
        *_faults("kubernetes.txt", _lines("kubernetes.in")),
        *_strangers("runtime.txt", core),
        *_strangers("dev.txt", everything),
        *_different_pins(),
        *(f"{lock.name} holds an address" for lock in HERE.glob("*.txt") if "://" in lock.read_text()),
    ]
    for fault in faults:
        sys.stderr.write(f"requirements/{fault}: run `make lock`\n")
    return 1 if faults else 0


def _faults(lock: str, requirements: list[str]) -> list[str]:
    """The requirements that a lock doesn't meet."""
    pins = _pins(lock)

    def met(requirement: Requirement) -> bool:
        pin = pins.get(canonicalize_name(requirement.name))
        return pin is not None and requirement.specifier.contains(pin, prereleases=True)

    wanted = [Requirement(text) for text in requirements]
    return [f"{lock} has no {requirement}" for requirement in wanted if not met(requirement)]


def _strangers(lock: str, requirements: list[str]) -> list[str]:
    """What a lock holds for the project's own sake, though the project no longer asks for it."""
    wanted = {canonicalize_name(Requirement(text).name) for text in requirements}
    package, strangers = "", []
    for line in (HERE / lock).read_text().splitlines():
        if not line.startswith((" ", "#")):
            package = line.partition("==")[0]
        elif PROJECT in line and package not in wanted:
            strangers.append(f"{lock} has {package}, which nothing asks for")
    return strangers


def _different_pins() -> list[str]:
    """What is tested in another version than the one that ships."""
    dev = _pins("dev.txt")
    shipped = _pins("runtime.txt") | _pins("uv.txt")
    return [f"dev.txt has not {name}=={pin}" for name, pin in shipped.items() if dev.get(name) != pin]


def _pins(lock: str) -> dict[str, str]:
    pins = [line.partition(";")[0].rstrip(" \\").split("==") for line in _lines(lock)]
    return dict(pins)


def _lines(name: str) -> list[str]:
    text = (HERE / name).read_text()
    return [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]


if __name__ == "__main__":
    sys.exit(main())
