"""Each kind of lack has a way out of its own."""

import errno
import os

import pytest

from executor.lack import behind, reason


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (
            errno.ENOSPC,
            "No space left on device: free space on the executor's disk (DATAHUB_EXECUTOR_WORK_DIR)",
        ),
        (errno.EDQUOT, "Disk quota exceeded: free space on the executor's disk"),
        (errno.EMFILE, "Too many open files: give the executor a higher limit on open files (nofile)"),
        (errno.ENFILE, "Too many open files in system: give the executor a higher limit"),
        (errno.EAGAIN, "Resource temporarily unavailable: give the executor a higher limit on processes"),
        (errno.ENOMEM, "Cannot allocate memory: give the task more memory"),
    ],
)
def test_what_is_lacking_is_named_with_the_way_out(number: int, words: str) -> None:
    assert reason(OSError(number, os.strerror(number)), "check its owner").startswith(words)


def test_where_nothing_is_lacking_the_given_way_out_is_named() -> None:
    error = OSError(errno.EACCES, "Permission denied")
    assert reason(error, "check its owner") == "Permission denied: check its owner"
    assert reason(error) == "Permission denied"


def test_an_error_without_a_number_has_its_text() -> None:
    assert reason(OSError("odd")) == "odd"


def test_a_lack_behind_a_failed_connection_is_found() -> None:
    lack = OSError(errno.EMFILE, "Too many open files")
    failed = ConnectionError("could not connect")
    failed.__cause__ = lack
    assert (behind(failed) or "").startswith("Too many open files: give the executor a higher limit")
    assert behind(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")) is None
