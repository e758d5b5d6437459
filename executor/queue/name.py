"""Which queue a setting names: a URL, an ARN or a plain name (contract, sections 1 and 6)."""

import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

_NAME = re.compile(r"(?=.{1,80}\Z)[A-Za-z0-9_-]+(?:\.fifo)?", re.ASCII)
_REGION = r"[a-z]{2,5}(?:-[a-z]+)+-[0-9]{1,2}"
_ARN = re.compile(
    rf"arn:aws(?:-[a-z]+)*:sqs:(?P<region>{_REGION}):(?P<account>[0-9]{{12}}):(?P<name>[^:/]+)", re.ASCII
)
# sqs.<region>.…, sqs-fips.<region>.…, <vpce>.sqs.<region>.vpce.…, and the older <region>.queue.…
_HOST_REGION = re.compile(rf"(?:^|\.)sqs(?:-fips)?\.({_REGION})\.|^({_REGION})\.queue\.", re.ASCII)
# The path form of local servers: /queue/<region>/<account>/<name>
_PATH_REGION = re.compile(rf"/queue/({_REGION})/", re.ASCII)
_AWS = re.compile(r"\.(?:amazonaws\.com(?:\.cn)?|api\.aws)\Z", re.ASCII)
_ACCOUNT = re.compile(r"[0-9]{12}", re.ASCII)


@dataclass(frozen=True, slots=True)
class QueueName:
    """A queue as its setting names it; what the setting doesn't say is None.

    `url` is used as given; without one, the queue is looked up by `name` and `account`.
    """

    name: str
    url: str | None = None
    account: str | None = None
    region: str | None = None

    @property
    def fifo(self) -> bool:
        """Whether this is a FIFO queue: SQS tells them apart by the name alone."""
        return self.name.endswith(".fifo")

    def __str__(self) -> str:
        return self.url or (f"{self.account}/{self.name}" if self.account else self.name)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a URL, an ARN or a plain name.

        Raises ValueError, whose message says what is wrong without repeating the text.
        """
        if text.startswith("arn:"):
            return cls._from_arn(text)
        if "://" in text:
            return cls._from_url(text)
        if not _NAME.fullmatch(text):
            raise ValueError(
                "it is neither a URL (https://…) nor an ARN (arn:aws:sqs:…), and a plain name has 1 to 80 "
                "characters, A-Z a-z 0-9 _ -, and may end in .fifo"
            )
        return cls(name=text)

    @classmethod
    def _from_arn(cls, text: str) -> Self:
        match = _ARN.fullmatch(text)
        if match is None or not _NAME.fullmatch(match["name"]):
            raise ValueError("an ARN of a queue reads arn:aws:sqs:<region>:<account, 12 digits>:<name>")
        return cls(name=match["name"], account=match["account"], region=match["region"])

    @classmethod
    def _from_url(cls, text: str) -> Self:
        try:
            parts = urlsplit(text)
            host = parts.hostname or ""
        except ValueError:
            raise ValueError("it is not a valid URL") from None
        segments = parts.path.strip("/").split("/")
        if parts.scheme not in {"http", "https"} or not host or not _NAME.fullmatch(segments[-1]):
            raise ValueError("a queue's URL reads https://sqs.<region>.amazonaws.com/<account>/<name>")
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError("a queue's URL holds no user, password, query or fragment")
        account = segments[-2] if len(segments) > 1 and _ACCOUNT.fullmatch(segments[-2]) else None
        if account is None and _AWS.search(host):  # a local server's URL may do without
            raise ValueError("a queue's URL on AWS reads https://…amazonaws.com/<account, 12 digits>/<name>")
        return cls(name=segments[-1], url=text, account=account, region=_region_of(host, parts.path))


def _region_of(host: str, path: str) -> str | None:
    if host == "queue.amazonaws.com":  # the oldest form of all
        return "us-east-1"
    if match := _HOST_REGION.search(host):
        return match[1] or match[2]
    if match := _PATH_REGION.match(path):
        return match[1]
    return None
