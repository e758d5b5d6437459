"""From a queue's name, as the settings have it, to a queue that can be spoken to."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from aiobotocore.config import AioConfig

from executor.queue.endpoints import slim_session
from executor.queue.errors import errors_in_words, require_sqs
from executor.queue.name import QueueName
from executor.queue.sqs import LONG_POLL_LIMIT, LONGEST_HOLD, SqsQueue

CONNECT_TIMEOUT = 5  # seconds
READ_TIMEOUT = 10  # seconds beyond a long poll's own wait


@asynccontextmanager
async def open_queue(
    name: QueueName,
    *,
    region: str | None,
    visibility_timeout: int,
    env: Mapping[str, str],
    longest_hold: int = LONGEST_HOLD,
) -> AsyncIterator[SqsQueue]:
    """A queue that is ready to be used; credentials and endpoints are botocore's own chain.

    Extending, giving back and deleting go through `serve`, which the caller runs in its task group.

    Raises:
        QueueError: no region is known, the credentials' configuration is broken, or a queue that is given by
            its plain name could not be looked up.
    """
    config = AioConfig(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=LONG_POLL_LIMIT + READ_TIMEOUT,
        max_pool_connections=32,
        retries={
            "total_max_attempts": 1
        },  # we repeat calls ourselves: a lease counts from before the last one
        tcp_keepalive=True,
    )
    async with AsyncExitStack() as stack:
        with errors_in_words(str(name)):
            client = await stack.enter_async_context(
                slim_session().create_client(
                    "sqs", region_name=region, endpoint_url=_endpoint(name, env), config=config
                )
            )
            url = await _url(client, name)
        yield SqsQueue(client, url, visibility_timeout, longest_hold)


async def _url(client: Any, name: QueueName) -> str:  # noqa: ANN401 - botocore makes its clients' types at run time
    if name.url:
        return name.url
    if name.account:  # SQS's URLs are made of these three: no permission needed to ask for it
        return f"{client.meta.endpoint_url.rstrip('/')}/{name.account}/{name.name}"
    answer = await client.get_queue_url(QueueName=name.name)
    require_sqs(answer, name.name)
    url: str = answer["QueueUrl"]
    return url


def _endpoint(name: QueueName, env: Mapping[str, str]) -> str | None:
    """Where to send calls, if not where botocore would: to a URL's own host (VPC endpoint, LocalStack)."""
    if not name.url or env.get("AWS_ENDPOINT_URL_SQS") or env.get("AWS_ENDPOINT_URL"):
        return None
    parts = urlsplit(name.url)
    if re.fullmatch(r"sqs\.[a-z0-9-]+\.amazonaws\.com(\.cn)?", parts.hostname or ""):
        return None
    return f"{parts.scheme}://{parts.netloc}"
