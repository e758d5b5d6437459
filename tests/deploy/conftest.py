"""Fixtures of the deployment's tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, cannot_be_had
from tests.deploy.cloud import Cloud, run_cloud
from tests.servers import ServerUnavailableError


@pytest.fixture(scope="session")
def deploy_venv() -> Path:
    """The venv of what judges and stands in for AWS (requirements/deploy.txt)."""
    venv = Path(os.environ.get("TEST_DEPLOY_VENV", ROOT / ".cache" / "deploy"))
    if not (venv / "bin" / "cfn-lint").exists():
        cannot_be_had(f"nothing to judge deploy/ by in {venv}: `make setup-tests` puts it there")
    return venv


@pytest.fixture(scope="session")
def cloud(deploy_venv: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """Moto's AWS, its CloudFormation included."""
    try:
        with run_cloud(deploy_venv, tmp_path_factory.mktemp("cloud")) as running:
            yield running
    except ServerUnavailableError as error:
        cannot_be_had(error)
