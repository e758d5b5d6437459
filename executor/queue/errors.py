"""What SQS and the libraries before it say when something is wrong, in words that name the way out."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.exceptions import ConnectionError as BotoConnectionError

from executor import lack
from executor.queue.delivery import LeaseLostError, QueueDeniedError, QueueError

_NOT_PERMITTED = {"AccessDenied", "AccessDeniedException"}
_UNKNOWN_CALLER = {
    "ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "InvalidSignatureException",
    "SignatureDoesNotMatch", "UnrecognizedClientException",
}  # fmt: skip
_GONE = {"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"}
_STALE = {"ReceiptHandleIsInvalid", "InvalidParameterValue", "MessageNotInflight", "InvalidReceiptHandle"}
_LONGEST_TEXT = 300  # characters of an exception's text: some quote the whole answer


@contextmanager
def errors_in_words(queue: str) -> Iterator[None]:
    """Turn whatever a call to SQS, or reading its answer, may raise into a QueueError."""
    try:
        yield
    except QueueError:
        raise
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        kind = QueueDeniedError if code in _NOT_PERMITTED else QueueError
        raise kind(_words(code, queue, str(error))) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise QueueError(
            f"there are no AWS credentials for the queue {queue}: give the task a role, or set AWS_PROFILE, or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except ProfileNotFound as error:
        raise QueueError(
            f"{error}: set AWS_PROFILE to a profile of the AWS configuration (AWS_CONFIG_FILE, "
            "AWS_SHARED_CREDENTIALS_FILE), or to none where the task has a role"
        ) from error
    except NoRegionError as error:
        raise QueueError(
            f"the region of the queue {queue} is not known: set AWS_REGION, or name the queue by its URL or ARN"
        ) from error
    except (BotoConnectionError, HTTPClientError, aiohttp.ClientError, OSError) as error:
        raise QueueError(f"the queue {queue} could not be reached: {_text(error)}") from error
    except BotoCoreError as error:
        raise QueueError(f"the queue {queue} can't be used: {_text(error)}") from error
    # The edge of libraries that raise what they like: RuntimeError for credentials that come back expired,
    # AttributeError for an answer that is a list. None of it may end the service, which asks again.
    except Exception as error:
        raise QueueError(
            f"the queue {queue} can't be used: {type(error).__name__}: {_text(error)}. Check the credentials, and "
            "whether something else than SQS answers there (DATAHUB_EXECUTOR_QUEUE, AWS_ENDPOINT_URL)"
        ) from error


def require_sqs(answer: Mapping[str, Any], queue: str) -> None:
    """See that SQS answered, or a server like it: a login page or a proxy's page would do for an empty receive.

    SQS numbers its answers; of the servers that take its place not all do, but their answers say what they are.

    Raises:
        QueueError: somebody else answered.
    """
    metadata = answer["ResponseMetadata"]
    content_type = str(metadata.get("HTTPHeaders", {}).get("content-type", ""))
    if not metadata.get("RequestId") and not content_type.startswith("application/x-amz-json"):
        raise QueueError(
            f"the queue {queue} could not be reached: something in front of SQS answered (no x-amzn-RequestId): "
            "check DATAHUB_EXECUTOR_QUEUE, AWS_ENDPOINT_URL and the proxies between"
        )


def is_fault_of_the_call(error: BaseException | None) -> bool:
    """Whether SQS refused only for what was asked of it: the caller is known and permitted."""
    return isinstance(error, ClientError) and (
        (code := _plain(error.response.get("Error", {}).get("Code", ""))) in _STALE
        or code in {"ReadCountOutOfRange", "InvalidMessageContents"}
    )


def entry_error(failure: Mapping[str, Any]) -> LeaseLostError | QueueError:
    """What the refusal of one entry of a batch means."""
    code = _plain(failure.get("Code"))
    message = str(failure.get("Message") or code)
    reason = message.rpartition("Reason: ")[2]
    # Twelve hours after its receipt a lease can't be renewed any more, but until it ends the message is ours.
    if code in _STALE and "parameter VisibilityTimeout" not in message:
        return LeaseLostError(reason)
    return QueueError(f"{code}: {reason}")


def _plain(code: object) -> str:
    return str(code).rpartition(".")[2].removesuffix("Exception")


def _text(error: Exception) -> str:
    text = lack.behind(error) or str(error) or type(error).__name__
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"


def _words(code: str, queue: str, text: str) -> str:
    if code in _GONE:
        return f"the queue {queue} does not exist: check DATAHUB_EXECUTOR_QUEUE, its region and its account"
    if code in _NOT_PERMITTED:
        return f"access to the queue {queue} is denied: check the role's policy and the queue's ({text})"
    if code in _UNKNOWN_CALLER:  # the text may quote the request, session token and all
        return (
            f"the AWS credentials for the queue {queue} are not accepted: check the role or the keys ({code})"
        )
    return f"the queue {queue} refused: {text}"
