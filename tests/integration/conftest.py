"""Fixtures of the integration tests."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog

from tests.servers import LocalStack

if TYPE_CHECKING:
    from executor.local.datahub import DataHubStandIn
    from tests.integration.service import Site
    from tests.integration.warm_stage import Stage


@pytest.fixture
async def site(
    localstack: LocalStack,
    stand_in: "DataHubStandIn",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warm: bool,
) -> AsyncIterator["Site"]:
    """A queue, the DataHub stand-in, and what it takes to run services between them, in this process."""
    from tests.integration.service import open_site

    for name, value in localstack.env.items():
        if name != "AWS_ENDPOINT_URL":  # the queue's own URL says where to go
            monkeypatch.setenv(name, value)
    handlers, level = list(logging.root.handlers), logging.root.level
    async with open_site(localstack, stand_in, tmp_path, warm=warm) as opened:
        yield opened
        assert opened.clis.may_start_cold or not opened.events("runs_start_cold"), opened.tail()
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator["Stage"]:
    """A guard and warm parents, in this process."""
    from tests.integration.warm_stage import open_stage

    structlog.reset_defaults()
    async with open_stage(tmp_path) as opened:
        yield opened
