"""Who owns a request: what is written of it, what is read again, and who else may have it."""

import json
from dataclasses import replace

import pytest

from executor.claim import CLAIM_TERM, Claim, Observations, Offer, Standing, standing
from executor.datahub.state import StoredState
from executor.queue.delivery import Delivery

CLAIM = Claim("owner", 2, "m1", 3, "host", 7, ("attempt 1 (host): it died",), Offer("m2", "handle", 1, 600.0))


def stored(properties: dict[str, str]) -> StoredState:
    return StoredState("RUNNING", None, 5, properties, killed=False)


def delivery(message_id: str, receives: int, sent_by: str | None = None) -> Delivery:
    return Delivery(message_id, "handle", "", receives, 0.0, 0.0, sent_by=sent_by)


@pytest.mark.parametrize("claim", [CLAIM, Claim("owner", 0, "m1", 1)], ids=["with all", "with the least"])
def test_what_is_written_of_a_claim_is_what_is_read(claim: Claim) -> None:
    assert Claim.of(stored(claim.properties())) == claim


def test_without_an_owner_there_is_no_claim() -> None:
    assert Claim.of(stored({})) is None
    assert Claim.of(stored({"executorAttempt": "2"})) is None


@pytest.mark.parametrize(
    "odd", ["", "-1", "1.5", "two", "9" * 5000, "½", "[]", "null", "{}", '[1, {"a": []}]', "[" * 5000]
)
def test_a_property_that_can_not_be_read_counts_as_absent(odd: str) -> None:
    """Somebody else's software, or a later release, may have written it."""
    names = ("executorAttempt", "executorBeat", "executorReceives", "executorAttemptsEnded", "executorOffer")
    claim = Claim.of(stored({"executorRun": "owner", "executorMessage": "m1"} | dict.fromkeys(names, odd)))
    assert claim == Claim("owner", 0, "m1", 0)


def test_an_offer_that_lacks_something_is_none() -> None:
    for offer in ('["m2", "handle"]', '["m2", "handle", "1"]', '["m2", null, 1]'):
        claim = Claim.of(stored(CLAIM.properties() | {"executorOffer": offer}))
        assert claim == replace(CLAIM, offer=None)


def test_the_ends_of_attempts_are_bounded_and_the_latest_are_kept() -> None:
    ended = tuple(f"{number} " + "x" * 10_000 for number in range(1000))
    properties = replace(CLAIM, ended=ended).properties()
    kept = json.loads(properties["executorAttemptsEnded"])
    assert len(properties["executorAttemptsEnded"]) < 10_000
    assert kept[-1].startswith("999 ")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (delivery("m1", 4), Standing.RETURNED),
        (delivery("m1", 4, sent_by="owner"), Standing.RETURNED),
        (delivery("m1", 3), Standing.OTHER),  # the owner's own receive
        (delivery("m2", 9), Standing.OTHER),
        (delivery("m2", 1, sent_by="owner"), Standing.FRESH),
        (delivery("m2", 4, sent_by="owner"), Standing.FRESH),
        (delivery("m2", 1, sent_by="an owner before"), Standing.OTHER),
    ],
)
def test_a_delivery_stands_to_a_claim_by_its_message(given: Delivery, expected: Standing) -> None:
    assert standing(CLAIM, given) is expected


def test_to_a_claim_that_names_no_message_any_message_returns_that_somebody_has_lost() -> None:
    old = replace(CLAIM, message_id="", receives=0)
    assert standing(old, delivery("m9", 1)) is Standing.OTHER
    assert standing(old, delivery("m9", 2)) is Standing.RETURNED


def test_an_owner_is_gone_once_it_was_silent_for_its_whole_term() -> None:
    seen = Observations()
    assert not seen.gone("r1", CLAIM, 1000.0)
    assert not seen.gone("r1", CLAIM, 1000.0 + CLAIM_TERM), "clocks may differ a little in their rates"
    assert seen.gone("r1", CLAIM, 1000.0 + CLAIM_TERM * 1.03)


@pytest.mark.parametrize("news", [replace(CLAIM, beat=8), replace(CLAIM, owner="another")])
def test_a_sign_of_life_or_another_owner_begins_the_term_anew(news: Claim) -> None:
    seen = Observations()
    seen.gone("r1", CLAIM, 0.0)
    assert not seen.gone("r1", news, CLAIM_TERM * 2)
    assert not seen.gone("r1", news, CLAIM_TERM * 3)
    assert seen.gone("r1", news, CLAIM_TERM * 4)


def test_a_request_that_was_forgotten_is_observed_anew() -> None:
    seen = Observations()
    seen.gone("r1", CLAIM, 0.0)
    seen.forget("r1")
    seen.forget("never seen")
    assert not seen.gone("r1", CLAIM, CLAIM_TERM * 2)


def test_of_very_many_requests_the_latest_are_remembered() -> None:
    seen = Observations()
    for number in range(5000):
        seen.gone(f"r{number}", CLAIM, 0.0)
    assert not seen.gone("r0", CLAIM, CLAIM_TERM * 2), "it is observed anew: late, never too early"
    assert seen.gone("r4999", CLAIM, CLAIM_TERM * 2)


def test_an_attempt_that_was_lost_is_told_of_with_its_time_and_place() -> None:
    words = "its executor died, or lost the queue"
    assert CLAIM.lost(0) == f"attempt 2 (host): {words}"
    assert CLAIM.lost(1_700_000_000_000) == f"attempt 2 (2023-11-14 22:13:20 UTC, host): {words}"
    assert replace(CLAIM, host="").lost(None) == f"attempt 2: {words}"
