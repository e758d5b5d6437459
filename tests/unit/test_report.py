"""What DataHub shows of a run: the end first, everything masked, never more than the server stores."""

import json
from dataclasses import replace

import pytest

from executor.ingestion.masking import Masker
from executor.ingestion.report import MAX_STORED, Summary, fit, render_report, stored_size

RUNNING = Summary(
    "RUN_INGEST", "postgres", "acryl-datahub 1.7.0", "remote", "ip-10-0-0-1", 1, 1_700_000_000.0
)
ENDED = replace(RUNNING, duration=83.4, ending="FAILURE: exit code 1. The last lines of the log say why.")
NOBODY = Masker()


def test_the_report_begins_with_how_the_run_ended_and_tells_what_ran_where() -> None:
    summary = replace(ENDED, notes=("Attempt 1 was interrupted: its task stopped.",))
    lines = render_report(summary, '{"a": 1}', "log line 1\nlog line 2\n", 10_000, NOBODY).splitlines()
    assert lines[0] == ENDED.ending
    text = "\n".join(lines)
    for words in (
        "RUN_INGEST",
        "postgres",
        "acryl-datahub 1.7.0",
        "remote on ip-10-0-0-1",
        "2023-11-14 22:13:20 UTC",
        "1 min 23 s",
        "Attempt 1 was interrupted",
    ):
        assert words in text
    assert text.index("Attempt 1") < text.index('"a": 1') < text.index("log line 1")
    assert lines[-1] == "log line 2"


def test_a_running_report_has_the_log_and_no_structured_report() -> None:
    fitted = fit(RUNNING, b'{"half": ', "working\n", NOBODY)
    assert fitted.structured is None
    assert fitted.report.startswith("Running.")
    assert fitted.report.endswith("== Log ==\nworking\n")
    assert "tructured" not in fitted.report


@pytest.mark.parametrize(("seconds", "words"), [(0.04, "0.0 s"), (59.5, "59.5 s"), (3725, "1 h 2 min 5 s")])
def test_durations_are_for_people(seconds: float, words: str) -> None:
    assert f"Duration:  {words}\n" in fit(replace(ENDED, duration=seconds), None, "", NOBODY).report


def test_the_structured_report_is_stored_as_the_cli_wrote_it() -> None:
    written = b'{\n  "source": {"failures": ["\\u00fc \xc3\xbc"]}\n}'
    fitted = fit(ENDED, written, "", NOBODY)
    assert fitted.structured == written.decode()


def test_people_see_of_the_structured_report_what_says_something() -> None:
    written = {"source": {"failures": ["größer", 0], "seen": 0, "skipped": [], "more": {"a": {}, "b": None}},
               "dry": False, "ratio": 0.5}  # fmt: skip
    fitted = fit(ENDED, json.dumps(written).encode(), "", NOBODY)
    shown = fitted.report.partition("== Structured report ==\n")[2].partition("\n\n== Log")[0]
    assert json.loads(shown) == {"source": {"failures": ["größer", 0]}, "dry": False, "ratio": 0.5}
    assert '\n      "größer",\n' in shown
    assert json.loads(fitted.structured or "") == written


@pytest.mark.parametrize(
    "written", [b'{"a": ' * 900 + b"1" + b"}" * 900, json.dumps(["x"] * 60_000).encode()]
)
def test_a_report_that_can_not_be_indented_is_shown_as_it_is(written: bytes) -> None:
    assert written.decode() in fit(ENDED, written, "", NOBODY).report


@pytest.mark.parametrize("written", [b"", b'{"a": ', b"\xff", b"not json", b"[" * 100_000])
def test_a_structured_report_that_is_no_json_is_left_out_and_that_is_said(written: bytes) -> None:
    fitted = fit(ENDED, written, "the log", NOBODY)
    assert fitted.structured is None
    assert "structured report is left out" in fitted.report
    assert fitted.report.endswith("the log")


def test_numbers_that_no_browser_reads_become_null() -> None:
    fitted = fit(ENDED, b'{"a": NaN, "b": [Infinity, 1]}', "", NOBODY)
    assert json.loads(fitted.structured or "") == {"a": None, "b": [None, 1]}


def test_everything_is_masked() -> None:
    secret = 'hun"ter\n2-long-line'
    masker = Masker([secret, "12345678"])
    structured = {
        secret: ["x " + secret, json.dumps({"in": secret})],
        "n": 12345678,
        "near": 9123456785.5,
        "ok": 7,
    }
    summary = replace(ENDED, ending=f"FAILURE: {secret}", notes=(f"note {secret}",))
    fitted = fit(summary, json.dumps(structured).encode(), f"log {secret} 12345678", masker)
    for text in (fitted.report, fitted.structured or ""):
        for part in ("hun", "ter", "long-line", "12345678"):
            assert part not in text
    assert json.loads(fitted.structured or "") == {
        "****": ["x ****", '{"in": "****"}'],
        "n": "****",
        "near": "9****5.5",
        "ok": 7,
    }


def test_lone_surrogates_reach_no_report() -> None:
    fit(replace(ENDED, ending="no file \udcff"), None, "\ud800", NOBODY).report.encode()


@pytest.mark.parametrize("line", ["plain line of text", "\x1b[31m\ufffd\t\\", "日本語 😀", ""])
@pytest.mark.parametrize("structured_size", [0, 1_000, 40_000, 85_000])
def test_both_together_stay_below_the_limit_however_they_are_escaped(line: str, structured_size: int) -> None:
    structured = json.dumps({"x": '"' * (structured_size // 4)}).encode() if structured_size else None
    log = f"{line}\n" * 20_000
    fitted = fit(ENDED, structured, log, NOBODY, limit=100_000)
    total = stored_size(fitted.report) + stored_size(fitted.structured or "")
    assert total <= 100_000
    assert fitted.report.startswith(ENDED.ending or "")
    if len(log) > 100_000:
        assert total > 90_000 or structured_size == 85_000
        assert "more lines cut to stay below DataHub's limit]" in fitted.report
        assert fitted.report.endswith(f"\n{line}\n{line}\n")


def test_the_newest_lines_are_kept_and_earlier_cuts_stay_said() -> None:
    log = "[… 7 earlier lines (1.0 kB) cut]\n" + "".join(f"line {number}\n" for number in range(1000))
    lines = render_report(ENDED, None, log, 2000, NOBODY).partition("== Log ==\n")[2].splitlines()
    kept = len(lines) - 2
    assert lines[0] == "[… 7 earlier lines (1.0 kB) cut]"
    assert lines[1] == f"[… {1000 - kept} more lines cut to stay below DataHub's limit]"
    assert lines[2:] == [f"line {number}" for number in range(1000 - kept, 1000)]
    assert kept > 100


def test_a_structured_report_too_large_on_its_own_is_left_out_and_that_is_said() -> None:
    written = json.dumps("x" * 90_000).encode()
    fitted = fit(ENDED, written, "log", NOBODY, limit=100_000)
    assert fitted.structured is None
    assert "90,002 characters are too many" in fitted.report


def test_a_structured_report_of_which_not_all_was_read_is_called_too_large() -> None:
    fitted = fit(ENDED, b'"' + b"x" * 100_000, "log", NOBODY, limit=100_000)
    assert fitted.structured is None
    assert "more than 100,000 bytes are too many" in fitted.report


def test_a_large_structured_report_is_stored_and_gives_way_in_the_text() -> None:
    written = json.dumps("x" * 60_000).encode()
    fitted = fit(ENDED, written, "log", NOBODY, limit=100_000)
    assert fitted.structured == written.decode()
    assert "stored beside this report" in fitted.report
    assert "xxx" not in fitted.report


def test_an_endless_reason_leaves_room_for_the_log() -> None:
    summary = replace(ENDED, ending="resolution failed: " + "x" * 30_000_000)
    fitted = fit(summary, None, "the log", NOBODY)
    assert stored_size(fitted.report) <= MAX_STORED
    assert fitted.report.endswith("the log")
