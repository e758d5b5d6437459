"""What the processes, the stand-in, the wire and the kernel testify to. Pure; all times are CLOCK_MONOTONIC's.

None of it is an executor's own word: the processes hold locks and note their begin and end, the stand-in notes what
it stored, the proxies note which request was handed to whom, and the harness what it did to the executors.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TypeVar

from benchmarks.chaos.capacity import Span, nobody_able, overlap, united
from benchmarks.chaos.faults import Fault
from benchmarks.chaos.records import Handed, Mark, Stored, Struck, Takeover

HIDDEN = 5 / 6  # of a lease: how long the queue hides a message, see docs/guarantees.md
ENDS = frozenset({"SUCCESS", "FAILURE", "CANCELLED"})


@dataclass(frozen=True)
class Evidence:
    """All of it, and the verdicts that follow."""

    sent: Sequence[str]
    marks: Sequence[Mark]
    stored: Sequence[Stored]
    handed: Sequence[Handed]
    struck: Sequence[Struck]
    executors: int
    slots: int  # runs at a time, of each
    lease: float  # seconds

    @cached_property
    def _marks_of(self) -> Mapping[str, list[Mark]]:
        return _by_request(self.marks)

    @cached_property
    def _stored_of(self) -> Mapping[str, list[Stored]]:
        return _by_request(self.stored)

    @cached_property
    def _handed_of(self) -> Mapping[str, list[Handed]]:
        return _by_request(self.handed)

    def ends(self) -> dict[str, str]:
        """The last status of each request; empty where none was stored."""
        return {
            exec_id: (writes[-1].status if (writes := self._stored_of.get(exec_id)) else "")
            for exec_id in self.sent
        }

    def lost(self) -> dict[str, str]:
        """The requests that have no terminal status, or whose SUCCESS no process has earned; and why."""
        found = {}
        for exec_id, status in self.ends().items():
            if status not in ENDS:
                found[exec_id] = f"its status is {status or 'none'}"
            elif status == "SUCCESS":
                stored = next(write.at for write in self._stored_of[exec_id] if write.status == "SUCCESS")
                finished = [mark.at for mark in self._marks_of.get(exec_id, ()) if mark.what == "ended"]
                if not finished:
                    found[exec_id] = "SUCCESS, but no process of it came to its end"
                elif min(finished) > stored:
                    found[exec_id] = "SUCCESS was stored before a process of it came to its end"
        return found

    def twice(self) -> list[Mark]:
        """The processes that began while another one of their request lived: no lock to be had, or by the notes."""
        found = {(mark.exec_id, mark.pid): mark for mark in self.marks if mark.what == "twice"}
        for marks in self._marks_of.values():
            for place, end in enumerate(marks):
                if end.is_end:
                    own = _begin_of(end, marks[:place])
                    late = [mark for mark in marks[own + 1 : place] if mark.what == "began"]
                    found |= {
                        (mark.exec_id, mark.pid): found.get((mark.exec_id, mark.pid), mark) for mark in late
                    }
        return sorted(found.values(), key=lambda mark: mark.at)

    def overwritten(self) -> list[str]:
        """The requests whose terminal status was written over."""
        return [
            exec_id
            for exec_id, writes in self._stored_of.items()
            if any(
                old.status in ENDS and (new.version > old.version or new.status != old.status)
                for old, new in pairwise(writes)
            )
        ]

    def attempts(self) -> Counter[str]:
        """How many processes began, by request."""
        return Counter(mark.exec_id for mark in self.marks if mark.what == "began")

    def takeovers(self) -> list[Takeover]:
        """How long requests waited for their next process: executor killed, or stopped beyond its lease.

        Counted from the signal, but:

        - Where the message was handed to an executor that then could not start it, from that on, since SQS hides
          the message anew: it was killed, drained, or stopped beyond its lease; it was cut off from SQS for longer
          than the queue hides a message, which was handed out again after that; or the answer was lost, or may have
          been, in a cut that was under way.
        - Without the time in which its receiver was cut off from DataHub: a request waits for it, its lease held.
        - Without the time, after the queue showed the message again, in which every executor was dead, stopped, cut
          off from a server, or had all of its slots taken, by processes or by requests whose owner it looked for:
          DataHub or SQS cut for all is such a time. See `capacity`.
        """
        return [
            self._takeover(exec_id, struck, after)
            for struck in self.struck
            if struck.fault.kind == "kill"
            or (struck.fault.kind == "stop" and struck.ended - struck.began > self.lease)
            for exec_id in self._running_on(struck)
            if (after := self._next_begin(exec_id, struck.began)) is not None
        ]

    def _running_on(self, struck: Struck) -> Iterator[str]:
        [executor] = struck.fault.executors
        for exec_id, marks in self._marks_of.items():
            before = [mark for mark in marks if mark.at <= struck.began and mark.what != "twice"]
            if before and before[-1].what == "began":
                last = before[-1]
                if (last.executor, last.life) == (executor, struck.life):
                    yield exec_id

    def _next_begin(self, exec_id: str, at: float) -> float | None:
        return next((m.at for m in self._marks_of[exec_id] if m.what == "began" and m.at > at), None)

    def _takeover(self, exec_id: str, struck: Struck, after: float) -> Takeover:
        start = struck.began
        waits: list[Span] = []
        handed = [one for one in self._handed_of.get(exec_id, ()) if struck.began < one.at <= after]
        for place, one in enumerate(handed):
            again = place + 1 < len(handed)
            end = handed[place + 1].at if again else after
            start = max([start, *self._in_the_way(one, end, again=again)])
            waits += self._waits_for_datahub(one, end)
        shown = start + self.lease * HIDDEN  # at the latest: until then nobody could have received it
        excused = [(max(begin, shown), end) for begin, end in self._nobody_able]
        excused += [(max(begin, start), end) for begin, end in waits]
        seconds = after - start - overlap(united(excused), start, after)
        return Takeover(exec_id, struck.fault.name, struck.began, seconds, after - struck.began)

    def _in_the_way(self, handed: Handed, until: float, *, again: bool) -> Iterator[float]:
        """When faults, or a lost answer, kept the receiver of a message from ever starting it.

        `until`: its next hand-out, if it was handed out `again`, or its start.
        """
        if handed.lost:
            yield handed.at
        for struck in self._meanwhile(handed, until):
            under_way = struck.began <= handed.at and again
            lasts = struck.ended - struck.began
            match struck.fault:
                case Fault(kind="kill" | "drain"):
                    yield max(struck.began, handed.at)
                case Fault(kind="stop") if lasts > self.lease:
                    yield max(struck.began, handed.at)
                case Fault(server="sqs") if under_way or (again and lasts > self.lease * HIDDEN):
                    yield max(struck.began, handed.at)

    def _waits_for_datahub(self, handed: Handed, until: float) -> Iterator[Span]:
        for struck in self._meanwhile(handed, until):
            if struck.fault.server == "datahub":
                yield max(struck.began, handed.at), min(struck.ended, until)

    def _meanwhile(self, handed: Handed, until: float) -> Iterator[Struck]:
        """The faults of a message's receiver from its hand-out on."""
        for struck in self.struck:
            if struck.touches(handed.executor) and struck.began <= until and struck.ended >= handed.at:
                yield struck

    @cached_property
    def _nobody_able(self) -> list[tuple[float, float]]:
        return nobody_able(self.marks, self.struck, self.handed, executors=self.executors, slots=self.slots)


Note = TypeVar("Note", Mark, Stored, Handed)


def _by_request(notes: Sequence[Note]) -> Mapping[str, list[Note]]:
    found: dict[str, list[Note]] = defaultdict(list)
    for note in sorted(notes, key=lambda note: note.at):
        found[note.exec_id].append(note)
    return found


def _begin_of(end: Mark, before: Sequence[Mark]) -> int:
    places = [
        place
        for place, mark in enumerate(before)
        if (mark.what, mark.pid, mark.life) == ("began", end.pid, end.life)
    ]
    return places[-1] if places else len(before)
