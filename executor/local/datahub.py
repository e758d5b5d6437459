"""A stand-in for a DataHub server, for the demo and the tests: real sockets, the contract's schema and rules.

As its own process: `python -m executor.local.datahub --port N --token T [--queue-url URL]`.
"""

import argparse
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import anyio
from aiobotocore.session import get_session
from aiohttp import web
from botocore.exceptions import BotoCoreError

from executor.queue.name import QueueName

try:
    from executor.local import graphql_api
    from executor.local.door import ADMIN_PREFIX, GRAPHQL_PATH, Door
    from executor.local.faults import Calls, Fault, Faults
    from executor.local.graphql_api import Generation, RunStateApi
    from executor.local.page_api import PageApi, Secret, Sender
    from executor.local.rest_api import OpenApi, RestLi
    from executor.local.rules import Json
    from executor.local.store import Store
except ModuleNotFoundError as lacking:
    if __name__ != "__main__":
        raise
    sys.stderr.write(
        f"The DataHub stand-in needs {lacking.name}: pip install 'datahub-remote-executor[demo]'\n"
    )
    sys.exit(2)

LOOPBACK: Final = "127.0.0.1"

_PREFIXES: Final = ("", "/gms", "/api/gms")  # the addresses a DataHub is given by (contract, section 1)
_MAX_BODY: Final = 64 * 1024 * 1024  # bytes; the server's limit is the aspect's, not the body's
_SERVER_VERSIONS: Final[dict[Generation, str]] = {
    "current": "v1.7.0",
    "no_force_generic_patch": "v1.2.0",
    "no_patch_entity": "v0.15.0",
}


class DataHubStandIn:
    """A running stand-in: what it stores, what it was asked, and how it is told to fail."""

    def __init__(self, *, host: str, token: str | None, store: Store, page: PageApi) -> None:
        self.store = store
        self.calls = Calls()
        self.faults = Faults(self._stop_listening, self._start_listening)
        self.generation: Generation = "current"
        self.port = 0
        self._host = host
        self._page = page
        self._resolvers = {**RunStateApi(store).resolvers(), **page.resolvers()}
        self._changed = anyio.Event()
        self._runner = web.AppRunner(self._app(token), access_log=None, shutdown_timeout=0.1)
        self._site: web.TCPSite | None = None
        store.on_result = self._result_written

    @property
    def url(self) -> str:
        """The address on this machine, `http://127.0.0.1:PORT`."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def secrets(self) -> dict[str, Secret]:
        """DataHub's secret store, by name."""
        return self._page.secrets

    @property
    def may_manage_secrets(self) -> bool:
        """Whether the token may manage secrets; without that privilege GraphQL answers an error for them."""
        return self._page.may_manage_secrets

    @may_manage_secrets.setter
    def may_manage_secrets(self, value: bool) -> None:
        self._page.may_manage_secrets = value

    @property
    def ignores_conditions(self) -> bool:
        """Whether this is an old server, that ignores `If-Version-Match` and keeps no write's properties."""
        return self.store.ignores_conditions

    @ignores_conditions.setter
    def ignores_conditions(self, value: bool) -> None:
        self.store.ignores_conditions = value
        self.store.keeps_properties = not value

    async def wait_for_status(self, exec_id: str, *statuses: str) -> str:
        """Wait until a request has one of the statuses, now or by a write from now on; returns it.

        A status that is overwritten at once is not missed. The caller limits the time.
        """
        if (status := self.store.status(exec_id)) in statuses and status is not None:
            return status
        seen = len(self.store.history(exec_id))
        while True:
            changed = self._changed
            for record in self.store.history(exec_id)[seen:]:
                if (status := record.status) in statuses and status is not None:
                    return status
                seen += 1
            await changed.wait()

    def _result_written(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def start(self, port: int) -> None:
        """Listen on `port`, or on a free one for 0."""
        await self._runner.setup()
        self.port = port
        await self._start_listening()

    async def stop(self) -> None:
        """Release what hangs, and stop."""
        self.faults.clear()
        await self._runner.cleanup()

    async def _start_listening(self) -> None:
        if self._site is None:
            self._site = web.TCPSite(self._runner, self._host, self.port, reuse_address=True)
            await self._site.start()
            self.port = self._site.port

    async def _stop_listening(self) -> None:
        if self._site is not None:
            await self._site.stop()
            self._site = None
        if self._runner.server is not None:
            for connection in self._runner.server.connections:
                connection.force_close()

    def _app(self, token: str | None) -> web.Application:
        door = Door(token=token, calls=self.calls, faults=self.faults)
        app = web.Application(middlewares=[door.enter], client_max_size=_MAX_BODY)
        open_api, rest_li = OpenApi(self.store), RestLi(self.store)
        for prefix in _PREFIXES:
            app.add_routes(
                [
                    web.get(f"{prefix}/config", self._config),
                    web.get(f"{prefix}/health", self._health),
                    web.post(prefix + GRAPHQL_PATH, self._graphql),
                    *open_api.routes(prefix),
                    *rest_li.routes(prefix),
                ]
            )
        app.add_routes(
            [
                web.post(f"{ADMIN_PREFIX}faults", self._add_fault),
                web.delete(f"{ADMIN_PREFIX}faults", self._clear_faults),
                web.get(f"{ADMIN_PREFIX}aspects", self._aspects),
            ]
        )
        return app

    async def _config(self, _request: web.Request) -> web.Response:
        version = _SERVER_VERSIONS[self.generation]
        return web.json_response(
            {
                "noCode": "true",
                "models": {},
                "versions": {"acryldata/datahub": {"version": version, "commit": None}},
                "managedIngestion": {"enabled": True, "defaultCliVersion": None},
                "statefulIngestionCapable": True,
                "supportsImpactAnalysis": True,
                "patchCapable": self.generation != "no_patch_entity",
                "retention": "true",
                "timeZone": "GMT",
                "telemetry": {"enabledCli": False, "enabledIngestion": False},
                "datahub": {"serverType": "stand-in", "serverEnv": "core"},
            }
        )

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _graphql(self, request: web.Request) -> web.Response:
        body = await request.json()
        return web.json_response(await graphql_api.answer(self.generation, self._resolvers, body))

    async def _add_fault(self, request: web.Request) -> web.Response:
        body = await request.json()
        try:
            self.faults.add(body["operation"], Fault(**body["fault"]), times=body.get("times"))
        except (KeyError, TypeError) as error:
            return web.json_response({"message": f"No such fault: {error}"}, status=400)
        return web.Response(status=204)

    async def _clear_faults(self, _request: web.Request) -> web.Response:
        self.faults.clear()
        return web.Response(status=204)

    async def _aspects(self, request: web.Request) -> web.Response:
        records = self.store.records(request.query.get("urn", ""))
        return web.json_response(
            {
                name: {"value": record.value, "systemMetadata": record.system_metadata()}
                for name, record in records.items()
            }
        )


@asynccontextmanager
async def stand_in(
    port: int = 0,
    *,
    token: str | None = "t",  # noqa: S107 - it guards nothing: the stand-in holds made-up data
    sender: Sender | None = None,
    host: str = LOOPBACK,
    store: Store | None = None,
    test_executor_id: str = "remote",
) -> AsyncIterator[DataHubStandIn]:
    """Run a stand-in in this event loop.

    Args:
        port: 0 takes a free one.
        token: the access token calls must carry; None asks for none.
        sender: is handed the change event of each request and each cancel made on the page.
        host: the address to listen on.
        store: the aspects to start with, for a size limit of its own.
        test_executor_id: the executor that requests to test a connection are addressed to.
    """
    kept = store or Store()
    page = PageApi(kept, sender, test_executor_id=test_executor_id)
    server = DataHubStandIn(host=host, token=token, store=kept, page=page)
    try:
        await server.start(port)
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def queue_sender(queue_url: str) -> AsyncIterator[Sender]:
    """Give a sender that puts change events on an SQS queue; endpoint and keys are botocore's own.

    The region is the one that the URL names, else that of AWS_REGION, AWS_DEFAULT_REGION or the profile.

    Raises:
        ValueError: it is no queue's URL.
        BotoCoreError: a client can't be made of what the environment says.
    """
    region = QueueName.parse(queue_url).region or os.environ.get("AWS_REGION")
    async with get_session().create_client("sqs", region_name=region or None) as sqs:

        async def send(event: Json) -> None:
            message = {"QueueUrl": queue_url, "MessageBody": json.dumps(event)}
            if queue_url.endswith(".fifo"):
                message |= {"MessageGroupId": event["entityUrn"], "MessageDeduplicationId": str(uuid.uuid4())}
            await sqs.send_message(**message)

        yield send


async def serve(host: str, port: int, token: str | None, queue_url: str | None) -> None:
    """Run a stand-in until SIGTERM or SIGINT; says on standard output where it listens."""
    async with AsyncExitStack() as stack:
        sender = None if queue_url is None else await stack.enter_async_context(queue_sender(queue_url))
        server = await stack.enter_async_context(stand_in(port, token=token, sender=sender, host=host))
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            sys.stdout.write(f"DataHub stand-in on {server.url}\n")
            sys.stdout.flush()
            async for _ in signals:
                return


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stand-in as a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m executor.local.datahub", description=__doc__)
    parser.add_argument("--host", default=LOOPBACK)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument(
        "--token",
        default=os.environ.get("DATAHUB_GMS_TOKEN"),
        help="what calls must carry; default: DATAHUB_GMS_TOKEN, or else none",
    )
    parser.add_argument("--queue-url", help="the SQS queue that requests and cancels go to")
    given = parser.parse_args(arguments)
    try:
        anyio.run(serve, given.host, given.port, given.token, given.queue_url)
    except (BotoCoreError, ValueError) as error:
        way_out = "name the queue by a URL that has its region, or set AWS_REGION"
        parser.error(f"--queue-url: {error} ({way_out})")
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        parser.exit(1, f"{given.host}:{given.port} can't be listened on ({why}): choose another --port\n")


if __name__ == "__main__":
    main()
