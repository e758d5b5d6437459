"""How far our clock is from those of the servers that we talk to."""

from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from executor.commands.checks.findings import Findings

TOLERANCE = 60.0  # seconds; AWS refuses signatures that are five minutes off


def offset(date: str | None, now: float) -> float | None:
    """Seconds that our clock, `now` since the epoch, is ahead of an HTTP `Date` header; None without one."""
    if date is None:
        return None
    try:
        return now - parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None


def check_clock(offsets: Mapping[str, float | None], findings: Findings) -> None:
    """Judge the offsets by server."""
    known = {server: seconds for server, seconds in offsets.items() if seconds is not None}
    if not known:
        findings.skipped("clock", "no server told its time")
        return
    words = ", ".join(f"{_in_words(seconds)} {server}'s" for server, seconds in known.items())
    if max(map(abs, known.values())) > TOLERANCE:
        findings.fault(
            "clock", words, "set this machine's clock (NTP): AWS refuses signatures that are 5 minutes off"
        )
    else:
        findings.good("clock", words)


def _in_words(seconds: float) -> str:
    if abs(seconds) < 2:  # the header has whole seconds
        return "agrees with"
    return f"{abs(seconds):,.0f} s {'ahead of' if seconds > 0 else 'behind'}"
