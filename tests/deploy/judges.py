"""The programs of this folder that run in the venv of requirements/kubernetes.txt."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, cannot_be_had


def judged(program: str, *arguments: str, given: object = None) -> Any:
    """What a program has to say, which gets `given` as JSON. No venv skips the test; CI must have it."""
    venv = Path(os.environ.get("TEST_KUBERNETES_VENV", ROOT / ".cache" / "kubernetes"))
    if not (venv / "bin" / "python").exists():
        cannot_be_had(f"nothing to judge deploy/ by in {venv}: `make setup-tests` puts it there")
    argv: list[str | Path] = [venv / "bin" / "python", Path(__file__).with_name(program), *arguments]
    done = subprocess.run(argv, input=json.dumps(given), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
