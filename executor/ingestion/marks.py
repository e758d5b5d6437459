"""Marks a process tree, before its first process is there, so that `members` finds all of it."""

import resource
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from executor.ingestion.members import MARK_LIMIT

_LARGEST_MARK = 2**62


def new_mark() -> int:
    """A mark that no other tree bears."""
    _, hard = resource.getrlimit(MARK_LIMIT)
    half = (_LARGEST_MARK if hard == resource.RLIM_INFINITY else hard) // 2
    return half + secrets.randbelow(half)


@contextmanager
def marked(mark: int) -> Iterator[None]:
    """Let what is started meanwhile inherit the mark: set on it later, its first child could be without."""
    soft, hard = resource.getrlimit(MARK_LIMIT)
    resource.setrlimit(MARK_LIMIT, (mark, hard))
    try:
        yield
    finally:
        resource.setrlimit(MARK_LIMIT, (soft, hard))
