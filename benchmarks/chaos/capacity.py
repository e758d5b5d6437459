"""When there was nobody who could have started another run. Pure."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from benchmarks.chaos.records import Handed, Mark, Struck

Span = tuple[float, float]


def nobody_able(
    marks: Sequence[Mark], struck: Sequence[Struck], handed: Sequence[Handed], *, executors: int, slots: int
) -> list[Span]:
    """The times in which each executor was struck by a fault, or had every slot taken.

    A slot is taken by a process, and before by the request while its receiver looks whether the owner lives.
    """
    taken = [*_taken(marks, struck), *_looked_at(marks, handed)]
    unable = [
        [(one.began, one.ended) for one in struck if one.touches(executor)]
        + _full([span for owner, span in taken if owner == executor], slots)
        for executor in range(executors)
    ]
    moments = sorted({moment for spans in unable for span in spans for moment in span})
    return [
        (begin, end)
        for begin, end in pairwise(moments)
        if all(any(span[0] <= begin and end <= span[1] for span in spans) for spans in unable)
    ]


def overlap(spans: Sequence[Span], begin: float, end: float) -> float:
    """How many seconds from `begin` to `end` are in one of the spans, none of which overlap each other."""
    return sum(max(0.0, min(end, span[1]) - max(begin, span[0])) for span in spans)


def united(spans: Sequence[Span]) -> list[Span]:
    """The same times, in spans that do not overlap each other."""
    found: list[Span] = []
    for begin, end in sorted(span for span in spans if span[0] < span[1]):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((begin, end))
    return found


def _taken(marks: Sequence[Mark], struck: Sequence[Struck]) -> Iterator[tuple[int, Span]]:
    """Which executor had a slot taken, and when.

    A process that noted no end of its own was over when its executor got a signal that ends it, or at the latest
    when the next one of its request began.
    """
    last = max((mark.at for mark in marks), default=0.0)
    for mark in marks:
        if mark.what == "began":
            ends = [
                later.at
                for later in marks
                if later.exec_id == mark.exec_id
                and later.at > mark.at
                and (later.what == "began" or (later.is_end and later.pid == mark.pid))
            ]
            ends += [
                one.began
                for one in struck
                if one.fault.kind in {"kill", "drain"}
                and (one.fault.executors, one.life) == ((mark.executor,), mark.life)
                and one.began > mark.at
            ]
            yield mark.executor, (mark.at, min([last, *ends]))


def _looked_at(marks: Sequence[Mark], handed: Sequence[Handed]) -> Iterator[tuple[int, Span]]:
    """Which executor held a request until it started it."""
    for one in handed:
        later = [mark for mark in marks if mark.exec_id == one.exec_id and mark.at >= one.at]
        first = min(later, key=lambda mark: mark.at, default=None)
        again = min(
            (two.at for two in handed if two.exec_id == one.exec_id and two.at > one.at), default=math.inf
        )
        if (
            first is not None
            and first.what == "began"
            and first.executor == one.executor
            and first.at < again
        ):
            yield one.executor, (one.at, first.at)


def _full(spans: Sequence[Span], slots: int) -> list[Span]:
    changes = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    full, count = [], 0
    for (at, change), (until, _) in pairwise(changes):
        count += change
        if count >= slots:
            full.append((at, until))
    return full
