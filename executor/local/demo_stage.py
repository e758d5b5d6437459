"""All that runs in the demo: database, queue, DataHub stand-in, executor."""

import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

from executor.datahub.client import DataHub
from executor.datahub.transport import open_transport
from executor.local import demo_shop
from executor.local.demo_page import Page
from executor.local.demo_service import DemoError, DemoService, running_service
from executor.local.demo_view import Show

if TYPE_CHECKING:
    from executor.local.datahub import DataHubStandIn
    from executor.local.sqs import EmbeddedQueue

_START_PATIENCE: Final = 60.0  # seconds for the executor to be ready


@dataclass(frozen=True)
class Stage:
    """What runs. `page` and `client` reach the stand-in by HTTP, with the token, as anybody would."""

    shop: Path
    secret: str = field(repr=False)
    queue: "EmbeddedQueue"
    datahub: "DataHubStandIn"
    page: Page
    client: DataHub
    service: DemoService


@contextmanager
def patience(seconds: float, words: str, service: DemoService) -> Iterator[None]:
    """Limit the time; raises DemoError with `words` and the end of the executor's log."""
    try:
        with anyio.fail_after(seconds):
            yield
    except TimeoutError:
        raise DemoError(
            f"{words} within {seconds:g} s. The end of the executor's log:\n{service.last_lines()}"
        ) from None


@asynccontextmanager
async def set_stage(
    show: Show, env: Mapping[str, str], folder: Path, *, venv: Path | None
) -> AsyncIterator[Stage]:
    """Start everything, a step each, on free ports of 127.0.0.1; stop it at the end, the executor first.

    `venv` is to be the bundled one; without it, the executor builds its own. All else goes into `folder`.

    Raises:
        DemoError: the executor does not start, or ended by itself.
    """
    key_id, key, token = (secrets.token_hex(16) for _ in range(3))
    async with AsyncExitStack() as stack:
        shop = folder / "shop.db"
        with show.step("A database in SQLite: three tables and a view of a shop"):
            demo_shop.make_shop(shop)
        with show.step("A queue: SQS as moto serves it") as step:
            from executor.local.sqs import REGION, embedded_queue  # here, as moto takes a while

            queue = await stack.enter_async_context(
                embedded_queue("datahub-ingestion", access_key_id=key_id, access_key=key)
            )
            step.words += f", {queue.url}"
        with show.step("A DataHub stand-in") as step:
            from executor.local.datahub import stand_in

            datahub = await stack.enter_async_context(stand_in(token=token, sender=queue.send))
            transport = await stack.enter_async_context(open_transport(datahub.url, token, _unobserved))
            step.words += f", {datahub.url}"
        with show.step("The executor: datahub-executor run") as step:
            settings = {
                "AWS_ACCESS_KEY_ID": key_id,
                "AWS_SECRET_ACCESS_KEY": key,
                "AWS_REGION": REGION,
                "DATAHUB_GMS_URL": datahub.url,
                "DATAHUB_GMS_TOKEN": token,
                "DATAHUB_EXECUTOR_QUEUE": queue.url,
                "DATAHUB_EXECUTOR_WORK_DIR": str(folder / "executor"),
                "DATAHUB_EXECUTOR_FILE_SECRET_BASEDIR": str(folder / "no-secrets"),
                "DATAHUB_EXECUTOR_METRICS_PORT": "0",
                "DATAHUB_EXECUTOR_DRAIN_TIMEOUT": "0",
                "DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT": "10",  # a stop sees the last receive to its end: 2 s
                "DATAHUB_BUNDLED_VENV_PATH": str(_bundled(folder, venv)),
            }
            service = await stack.enter_async_context(running_service({**env, **settings}, folder))
            with patience(_START_PATIENCE, "the executor was not ready", service):
                await service.until("consuming")
            step.words += f", process {service.pid}"
        yield Stage(
            shop=shop,
            secret=secrets.token_hex(12),
            queue=queue,
            datahub=datahub,
            page=Page(transport),
            client=DataHub(transport),
            service=service,
        )


def _bundled(folder: Path, venv: Path | None) -> Path:
    """The folder of ready-made venvs: the given one, under the name by which the executor looks for it."""
    place = folder / "bundled"
    place.mkdir()
    if venv is not None:
        (place / f"{demo_shop.PLUGIN}-bundled").symlink_to(venv.absolute())
    return place


def _unobserved(_operation: str, _failure: str | None) -> None:
    """Nobody counts the demo's calls."""
