"""Being the parent of processes that another one forked: prctl(2), PR_SET_CHILD_SUBREAPER."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_SET_SUBREAPER, _GET_SUBREAPER = 36, 37


class Adoption:
    """Makes this process the parent of what is orphaned below it, as a container's first process is anyway.

    Only meanwhile: what runs leave behind is otherwise init's to collect.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None)
        self._before = ctypes.c_int()
        self._users = 0

    @contextmanager
    def open(self) -> Iterator[bool]:
        """Adopt meanwhile; yields whether the system allows it."""
        self._users += 1
        if self._users == 1:
            self._libc.prctl(_GET_SUBREAPER, ctypes.byref(self._before), 0, 0, 0)
        try:
            yield self._libc.prctl(_SET_SUBREAPER, 1, 0, 0, 0) == 0
        finally:
            self._users -= 1
            if not self._users:
                self._libc.prctl(_SET_SUBREAPER, self._before.value, 0, 0, 0)
