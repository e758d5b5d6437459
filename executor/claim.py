"""Who works on a request, as DataHub is told with every write of its state; and who else may. No I/O."""

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Self

from executor.datahub.state import StoredState
from executor.queue.delivery import Delivery

# Names of system metadata properties (contract, section 3).
OWNER = "executorRun"
ATTEMPT = "executorAttempt"
_BEAT = "executorBeat"
_MESSAGE = "executorMessage"
_RECEIVES = "executorReceives"
_HOST = "executorHost"
_ENDED = "executorAttemptsEnded"
_OFFER = "executorOffer"

CLAIM_TERM = 7200.0
"""Seconds that a claim lasts without a write of its owner's. The owner ends its run when it could not write for so
long: until then only the queue can show that it is gone."""
_CLOCK_RATES = 1.02  # what two monotonic clocks may be apart, in every second
_ENDING = 60.0  # seconds that the owner takes at most to see that its term is over, and to end its run
_OBSERVED = 1000  # requests of others whose owners are remembered
_ENDED_KEPT = 20  # attempts whose ends are told of
_LONGEST_REASON = 300  # characters


@dataclass(frozen=True, slots=True)
class Offer:
    """A receive of the message that an owner waits for, made by another executor and passed on."""

    message_id: str
    receipt_handle: str
    receive_count: int
    hold_left: float  # seconds, when it was passed on, until the queue shows it whatever it is asked


@dataclass(frozen=True, slots=True)
class Claim:
    """An owner's hold on a request.

    `beat` grows with each write of the owner's: its sign of life. `message_id` and `receives` name the delivery
    whose lease it works under; `ended` tells how the attempts before this one ended.
    """

    owner: str
    attempt: int
    message_id: str
    receives: int
    host: str = ""
    beat: int = 0
    ended: tuple[str, ...] = ()
    offer: Offer | None = None

    def properties(self) -> dict[str, str]:
        """As they go with a write."""
        properties = {
            OWNER: self.owner,
            ATTEMPT: str(self.attempt),
            _BEAT: str(self.beat),
            _MESSAGE: self.message_id,
            _RECEIVES: str(self.receives),
            _HOST: self.host,
        }
        if self.ended:
            properties[_ENDED] = json.dumps(
                [reason[:_LONGEST_REASON] for reason in self.ended[-_ENDED_KEPT:]]
            )
        if self.offer is not None:
            offer = self.offer
            properties[_OFFER] = json.dumps(
                [offer.message_id, offer.receipt_handle, offer.receive_count, offer.hold_left]
            )
        return properties

    @classmethod
    def of(cls, stored: StoredState) -> Self | None:
        """The claim that was last written; None where there is none, or the server keeps no properties."""
        properties = stored.properties
        if OWNER not in properties:
            return None
        return cls(
            owner=properties[OWNER],
            attempt=_number(properties, ATTEMPT),
            message_id=properties.get(_MESSAGE, ""),
            receives=_number(properties, _RECEIVES),
            host=properties.get(_HOST, ""),
            beat=_number(properties, _BEAT),
            ended=_texts(properties.get(_ENDED)),
            offer=_offer(properties.get(_OFFER)),
        )

    def lost(self, started_ms: int | None) -> str:
        """The words for this attempt's end, where it ended with its executor."""
        return attempt_ended(self.attempt, self.host, started_ms, "its executor died, or lost the queue")


def attempt_ended(attempt: int, host: str, started_ms: int | None, why: str) -> str:
    """One attempt that was interrupted, in words."""
    when = (
        datetime.fromtimestamp(started_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if started_ms else ""
    )
    where = ", ".join(part for part in (when, host) if part)
    return f"attempt {attempt}" + (f" ({where})" if where else "") + f": {why}"


class Standing(Enum):
    """What a delivery is worth beside the claim of somebody who works on its request."""

    RETURNED = auto()  # the owner's own message came back: its lease has ended, unless this is a second copy
    FRESH = auto()  # the message that the owner has sent to take the place of its old one
    OTHER = auto()  # the owner works under the lease of another delivery


def standing(claim: Claim, delivery: Delivery) -> Standing:
    """How `delivery` stands to the claim that DataHub knows of."""
    # Earlier releases' claims name no message: that somebody has lost this one before has to do for them.
    message_id, receives = (
        (claim.message_id, claim.receives) if claim.message_id else (delivery.message_id, 1)
    )
    if delivery.message_id == message_id and delivery.receive_count > receives:
        return Standing.RETURNED
    return Standing.FRESH if delivery.sent_by == claim.owner else Standing.OTHER


class Observations:
    """Since when the owners of other executors' runs have been silent, by this one's monotonic clock."""

    def __init__(self, term: float = CLAIM_TERM) -> None:
        """`term` is that of their claims, in seconds."""
        self._lasts = term * _CLOCK_RATES + min(_ENDING, term)
        self._seen: OrderedDict[str, tuple[str, int, float]] = OrderedDict()

    def gone(self, exec_id: str, claim: Claim, now: float) -> bool:
        """Note the claim as it was read at `now`; whether its term is over for certain."""
        owner, beat, since = self._seen.get(exec_id, ("", 0, now))
        if (owner, beat) != (claim.owner, claim.beat):
            since = now
        self._seen[exec_id] = claim.owner, claim.beat, since
        self._seen.move_to_end(exec_id)
        if len(self._seen) > _OBSERVED:
            self._seen.popitem(last=False)
        return now - since > self._lasts

    def forget(self, exec_id: str) -> None:
        """It ended, or is ours."""
        self._seen.pop(exec_id, None)


def _number(properties: Mapping[str, str], name: str) -> int:
    text = properties.get(name, "")
    return int(text) if text.isdecimal() and len(text) <= 18 else 0


def _texts(text: str | None) -> tuple[str, ...]:
    found = _json(text)
    return tuple(entry for entry in found if isinstance(entry, str))


def _offer(text: str | None) -> Offer | None:
    match _json(text):
        case [str(message_id), str(receipt_handle), int(receive_count), int() | float() as hold_left]:
            return Offer(message_id, receipt_handle, receive_count, hold_left)
    return None


def _json(text: str | None) -> list[object]:
    try:
        found = json.loads(text or "[]")
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []
