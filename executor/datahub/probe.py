"""Whether run state may be written, found out without writing any."""

import json
from uuid import uuid4

from executor.datahub import answers, documents
from executor.datahub.answers import GraphQLAnswer
from executor.datahub.client import ENTITY, RESULT
from executor.datahub.errors import (
    DataHubRefusedError,
    ForbiddenError,
    UnauthorizedError,
    UnsupportedError,
    write_refusal,
)
from executor.datahub.state import urn_of
from executor.datahub.transport import Transport

# No aspect is ever at this version (contract, section 3). Old servers ignore it, so nothing rests on it alone.
_IMPOSSIBLE_VERSION = "0"


async def write_access(transport: Transport) -> str:
    """The way by which this server takes run state: `patchEntity` or `OpenAPI`.

    What is sent can't be stored by any server: a patch that is nothing but a test that fails, or an aspect
    without its required status, both of a request that does not exist. A server looks at the privilege first.

    Raises:
        UnauthorizedError: the token lacks the privilege.
        DataHubError: it could not be found out.
    """
    urn = urn_of(f"check-{uuid4()}")
    return "patchEntity" if await _can_patch(transport, urn) else await _by_openapi(transport, urn)


async def _can_patch(transport: Transport, urn: str) -> bool:
    """False on a server that has no `patchEntity`, or none for this aspect."""
    test = {"op": "TEST", "path": "/status", "value": json.dumps("a status that there is not")}
    patch = {
        "urn": urn,
        "entityType": "dataHubExecutionRequest",
        "aspectName": RESULT,
        "patch": [test],
        "forceGenericPatch": True,
        "headers": [{"key": "If-Version-Match", "value": _IMPOSSIBLE_VERSION}],
    }
    try:
        await transport.query("patchEntity", documents.PATCH_ONE, {"input": patch}, _refused_as_it_must_be)
    except UnsupportedError:
        return False
    except ForbiddenError as error:
        raise UnauthorizedError(str(error), error.kind) from error
    return True


def _refused_as_it_must_be(answer: GraphQLAnswer) -> None:
    """What a server has against this patch says that it can patch, but for these two."""
    error = write_refusal(answers.patched(answer) or "")
    if isinstance(error, UnsupportedError | ForbiddenError):
        raise error


async def _by_openapi(transport: Transport, urn: str) -> str:
    aspect = {"value": {}, "headers": {"If-Version-Match": _IMPOSSIBLE_VERSION}}
    body = [{"urn": urn, RESULT: aspect}]
    try:
        await transport.json("writeState", "POST", f"{ENTITY}?async=false", body, answers.entities)
    except UnauthorizedError:
        raise
    except DataHubRefusedError:  # for what was sent, as it must be
        return "OpenAPI"
    raise DataHubRefusedError("DataHub took a run's state that has no status: is this a DataHub?")
