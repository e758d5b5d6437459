"""The log of a run: newest lines win, what is cut is said, nothing unshowable gets through."""

import pytest

from executor.ingestion.masking import Masker
from executor.ingestion.output import OutputBuffer, in_units


def make_buffer(*secrets: str, limit_bytes: int = 1000, line_limit: int = 100) -> OutputBuffer:
    return OutputBuffer(Masker(secrets).stream(), limit_bytes, line_limit)


def test_what_was_printed_is_shown_with_the_unfinished_line() -> None:
    buffer = make_buffer()
    buffer.feed(b"one\ntwo\nPassword: ")
    assert buffer.snapshot() == "one\ntwo\nPassword: "
    assert (buffer.total_lines, buffer.total_bytes) == (3, 18)
    buffer.feed(b"?\n")
    assert buffer.snapshot() == "one\ntwo\nPassword: ?\n"
    assert buffer.total_lines == 3


def test_the_newest_whole_lines_win_and_the_cut_is_said() -> None:
    buffer = make_buffer()
    for number in range(100_000):
        buffer.feed(b"line %6d\n" % number)
    header, *lines = buffer.snapshot(1000).splitlines()
    assert lines[-1] == "line  99999"
    assert lines == [f"line {number:6d}" for number in range(100_000 - len(lines), 100_000)]
    assert header == f"[… {100_000 - len(lines):,} earlier lines (1.2 MB) cut]"
    assert 800 < len(buffer.snapshot(1000).encode()) <= 1000


def test_what_fits_is_not_cut() -> None:
    buffer = make_buffer()
    buffer.feed(b"0123456789\n" * 20)
    assert buffer.snapshot(220) == "0123456789\n" * 20
    assert buffer.snapshot(219).startswith("[… ")
    assert len(buffer.snapshot(219).encode()) <= 219


def test_a_line_larger_than_the_snapshot_shows_its_end() -> None:
    buffer = make_buffer(limit_bytes=10_000, line_limit=10_000)
    buffer.feed("ä".encode() * 400 + b"end")
    shown = buffer.snapshot(300)
    assert shown.endswith("ääend")
    assert len(shown.encode()) <= 300


@pytest.mark.parametrize("pieces", [1, 7, 99, 5000])
def test_a_long_line_keeps_its_beginning_and_says_what_is_cut(pieces: int) -> None:
    buffer = make_buffer(limit_bytes=5000)
    data = b"before\n" + b"x" * 1100 + b"\nafter\n" + b"y" * 150 + b"\n" + b"z" * 100 + b"\nend\n"
    for at in range(0, len(data), pieces):
        buffer.feed(data[at : at + pieces])
    assert buffer.snapshot().splitlines() == [
        "before",
        "x" * 100 + "… [1,000 more bytes of this line cut]",
        "after",
        "y" * 100 + "… [50 more bytes of this line cut]",
        "z" * 100,
        "end",
    ]


def test_a_long_line_is_not_cut_inside_a_character() -> None:
    buffer = make_buffer()
    buffer.feed(b"x" + "ä".encode() * 100)
    assert buffer.snapshot() == "x" + "ä" * 49 + "… [102 more bytes of this line cut]"


def test_memory_is_bounded_for_a_line_without_an_end() -> None:
    buffer = make_buffer()
    for _ in range(1000):
        buffer.feed(b"x" * 100_000)
    assert buffer.snapshot() == "x" * 100 + "… [99,999,900 more bytes of this line cut]"
    assert buffer.total_bytes == 100_000_000


def test_many_empty_lines_are_counted() -> None:
    buffer = make_buffer()
    for _ in range(10):
        buffer.feed(b"\n" * 100_000)
    header, *lines = buffer.snapshot(500).splitlines()
    assert buffer.total_lines == 1_000_000
    assert header == f"[… {1_000_000 - len(lines):,} earlier lines ({in_units(1_000_000 - len(lines))}) cut]"


@pytest.mark.parametrize("pieces", [1, 2, 3, 1000])
def test_a_progress_bar_shows_its_last_state(pieces: int) -> None:
    buffer = make_buffer()
    data = b"\r 10%\r 50%\r100%\nwindows\r\nmore\r\r\nlast: 1\r last: 2\r"
    for at in range(0, len(data), pieces):
        buffer.feed(data[at : at + pieces])
    assert buffer.snapshot() == "100%\nwindows\nmore\n last: 2"


def test_an_endless_progress_bar_is_not_a_long_line() -> None:
    buffer = make_buffer()
    for percent in range(100):
        buffer.feed(b"\r%d%% of it" % percent)
    assert buffer.snapshot() == "99% of it"
    buffer.feed(b"\n" + b"\r5%" * 100 + b"\nend\n")
    assert buffer.snapshot() == "99% of it\n5%\nend\n"


def test_what_is_no_text_is_replaced() -> None:
    buffer = make_buffer()
    buffer.feed(b"nul\x00 bell\x07 bad\xff\xc3 tab\t colour\x1b[31m " + b"\xed\xa0\x80" + b" \xc3")
    buffer.feed(b"\xa4\n")
    shown = buffer.snapshot()
    assert shown.startswith("nul\ufffd bell\ufffd bad\ufffd\ufffd tab\t colour\x1b[31m ")
    assert shown.endswith(" ä\n")
    buffer.note("an argument that was no text: \udcff")
    buffer.snapshot().encode()  # would refuse a lone surrogate


def test_secrets_are_masked_across_chunks_and_in_our_own_lines() -> None:
    buffer = make_buffer("hunter2")
    buffer.feed(b"pw=hun")
    assert buffer.snapshot() == "pw="
    buffer.feed(b"ter2\n")
    buffer.note("starting with hunter2")
    buffer.feed(b"hunter")
    buffer.finish()
    assert buffer.snapshot() == "pw=****\nstarting with ****\n****"


def test_a_line_of_ours_stands_alone() -> None:
    buffer = make_buffer()
    buffer.feed(b"unfinished")
    buffer.note("cancelled on request")
    buffer.feed(b"the rest\n")
    assert buffer.snapshot() == "unfinished\ncancelled on request\nthe rest\n"


def test_the_version_grows_only_when_there_is_something_new_to_show() -> None:
    buffer = make_buffer("hunter2")
    assert buffer.version == 0
    buffer.feed(b"")
    buffer.feed(b"hunter")
    assert buffer.version == 0
    buffer.feed(b"s\n")
    first = buffer.version
    assert first > 0
    buffer.note("x")
    assert buffer.version > first


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1_000, "1.0 kB"), (1_234_567, "1.2 MB"), (5 * 10**12, "5.0 TB")],
)
def test_sizes_are_in_units_of_people(size: int, words: str) -> None:
    assert in_units(size) == words
