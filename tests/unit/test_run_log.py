from executor.commands.run_log import LogFollower, log_of, summary_of
from executor.ingestion.masking import Masker
from executor.ingestion.output import OutputBuffer
from executor.ingestion.report import Summary, render_report


def report(log: str, structured: str | None = None) -> str:
    summary = Summary("RUN_INGEST", "postgres", "1.7.0", "remote", "host", 1, 0.0, ending="It ended.")
    return render_report(summary, structured, log, 1_000_000, Masker([]))


def test_the_report_is_taken_apart_where_it_was_put_together() -> None:
    text = report("one\n== Log ==\ntwo\n", '{"a":\n1}')
    assert summary_of(text).startswith("It ended.\n\nTask:      RUN_INGEST\n")
    assert "Structured" not in summary_of(text)
    assert log_of(text) == "one\n== Log ==\ntwo\n"


def test_a_report_of_another_executor_is_all_log_and_all_summary() -> None:
    assert summary_of("just words") == "just words"
    assert log_of("just words") == "just words"


def test_only_what_is_new_comes_and_an_unfinished_line_waits_for_its_end() -> None:
    follower = LogFollower()
    assert follower.new_lines("", ended=False) == []
    assert follower.new_lines("a\nb\nunfin", ended=False) == ["a", "b"]
    assert follower.new_lines("a\nb\nunfinished\nc", ended=False) == ["unfinished"]
    assert follower.new_lines("a\nb\nunfinished\nc", ended=True) == ["c"]
    assert follower.new_lines("a\nb\nunfinished\nc", ended=True) == []


def test_every_line_comes_once_though_the_head_is_cut_more_and_less() -> None:
    """As live: progress reports hold less of the log than the final one. All lines are the same."""
    output = OutputBuffer(Masker([]).stream())
    follower = LogFollower()
    seen: list[str] = []
    for _ in range(50):
        output.feed(b"the same\n" * 37)
        seen += follower.new_lines(log_of(report(output.snapshot(512))), ended=False)
    seen += follower.new_lines(log_of(report(output.snapshot())), ended=True)
    shown = [line for line in seen if line == "the same"]
    assert shown == seen, "nothing was said to be missing"
    assert len(seen) == 50 * 37


def test_lines_that_went_by_unseen_are_counted() -> None:
    follower = LogFollower()
    follower.new_lines("a\nb\n", ended=False)
    new = follower.new_lines("[… 5 earlier lines (10 bytes) cut]\nf\n", ended=True)
    assert new == ["[… 3 lines went by unseen]", "f"]


def test_a_log_that_does_not_say_what_was_cut_is_followed_by_its_lines() -> None:
    follower = LogFollower()
    follower.new_lines("".join(f"line {n}\n" for n in range(100)), ended=False)
    later = "".join(f"line {n}\n" for n in range(40, 103))
    assert follower.new_lines(later, ended=False) == ["line 100", "line 101", "line 102"]


def test_a_log_that_has_nothing_of_the_old_one_comes_whole() -> None:
    follower = LogFollower()
    follower.new_lines("a\nb\nc\n", ended=False)
    assert follower.new_lines("other\n", ended=False) == ["other"]
