import io
from typing import Any

import pytest

from executor.commands.checks.clock import check_clock, offset
from executor.commands.checks.findings import Findings
from executor.commands.checks.queue import check_facts
from executor.queue.sqs import QueueFacts
from executor.settings import load_settings

SKIPPED = "\N{EN DASH}"
NOON = "Sun, 06 Nov 1994 12:00:00 GMT"
NOON_EPOCH = 784123200.0
ARN = "arn:aws:sqs:eu-west-1:123456789012:dead"


def facts(**changes: Any) -> str:
    known: dict[str, Any] = {
        "url": "http://queue/q",
        "arn": ARN,
        "visibility_timeout": 30,
        "dead_letter_arn": ARN,
        "max_receive_count": 10,
        "waiting": 0,
        "in_flight": 0,
        "retention": 345_600,
        "encrypted_with": None,
    }
    out = io.StringIO()
    findings = Findings(out)
    env = {"DATAHUB_GMS_URL": "http://x", "DATAHUB_EXECUTOR_QUEUE": "q", "AWS_REGION": "eu-west-1"}
    check_facts(QueueFacts(**known | changes), load_settings(env), findings)
    assert not findings.faulty
    return out.getvalue()


@pytest.mark.parametrize(("ahead", "sign"), [(0, "✓"), (59, "✓"), (-59, "✓"), (61, "✗"), (-300, "✗")])
def test_a_clock_is_off_from_a_minute_on(ahead: float, sign: str) -> None:
    out = io.StringIO()
    findings = Findings(out)
    check_clock({"DataHub": 0.0, "the queue": offset(NOON, NOON_EPOCH + ahead)}, findings)
    assert out.getvalue().startswith(sign)
    assert findings.faulty is (sign == "✗")


def test_a_clock_without_a_server_to_compare_it_with_is_no_fault() -> None:
    out = io.StringIO()
    findings = Findings(out)
    check_clock({"DataHub": offset(None, 0.0), "the queue": offset("yesterday", 0.0)}, findings)
    assert out.getvalue().startswith(SKIPPED)
    assert not findings.faulty


def test_a_queue_that_goes_with_our_settings_has_nothing_to_warn_of() -> None:
    assert "!" not in facts()


@pytest.mark.parametrize(
    ("changes", "name", "way_out"),
    [
        ({"dead_letter_arn": None, "max_receive_count": None}, "redrive policy", "a maxReceiveCount of 10"),
        ({"max_receive_count": 9}, "redrive policy", "set maxReceiveCount to 10"),
        ({"retention": 3600}, "retention", "MessageRetentionPeriod"),
    ],
)
def test_a_queues_own_settings_that_do_not_go_with_ours_are_warned_of(
    changes: dict[str, Any], name: str, way_out: str
) -> None:
    [warning] = [line for line in facts(**changes).splitlines() if line.startswith("!")]
    assert warning.startswith(f"! {name}")
    assert way_out in warning


def test_a_locale_without_the_marks_does_not_end_the_check() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    Findings(out).good("uv", "found")
    out.flush()
    assert raw.getvalue().startswith(b"? uv")
