"""Ways the stand-in can be told to fail, and the log of the calls it received."""

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

import anyio

FaultKind = Literal["slow", "status", "cut_before_write", "cut_after_write", "hang"]

_CALLS_KEPT: Final = 10_000


@dataclass(frozen=True)
class Fault:
    """One way to fail a call."""

    kind: FaultKind
    seconds: float = 0.0
    code: int = 503
    body: str = ""

    @classmethod
    def slow(cls, seconds: float) -> "Fault":
        """Handle the call only after so many seconds."""
        return cls("slow", seconds=seconds)

    @classmethod
    def status(cls, code: int = 503, body: str = "<html>Service Unavailable</html>") -> "Fault":
        """Answer this HTTP status and body instead of handling the call, as a proxy in between would."""
        return cls("status", code=code, body=body)

    @classmethod
    def cut_before_write(cls) -> "Fault":
        """Drop the connection before anything is stored."""
        return cls("cut_before_write")

    @classmethod
    def cut_after_write(cls) -> "Fault":
        """Handle the call, then drop the connection without an answer."""
        return cls("cut_after_write")

    @classmethod
    def hang(cls) -> "Fault":
        """Leave the call unhandled and unanswered until the fault is cleared."""
        return cls("hang")


@dataclass
class Rule:
    """A fault, what it strikes, and how many more calls it strikes (None: until it is cleared)."""

    operation: str
    fault: Fault
    times: int | None
    cleared: anyio.Event = field(default_factory=anyio.Event)

    def strikes(self, operations: Iterable[str], path: str) -> bool:
        """Whether a call is struck: by `*`, by `/…` as a path's beginning, else by a GraphQL root field."""
        if self.operation == "*":
            return True
        if self.operation.startswith("/"):
            return path.startswith(self.operation)
        return self.operation in operations


class Faults:
    """The faults in force, oldest first; a call is struck by the first that matches it."""

    def __init__(self, down: Callable[[], Awaitable[None]], up: Callable[[], Awaitable[None]]) -> None:
        self._rules: list[Rule] = []
        self._down = down
        self._up = up

    def add(self, operation: str, fault: Fault, *, times: int | None = None) -> Rule:
        """Strike the next `times` calls of an operation (see `Rule.strikes`), or every one until `clear`."""
        rule = Rule(operation, fault, times)
        self._rules.append(rule)
        return rule

    def clear(self, rule: Rule | None = None) -> None:
        """Lift one fault, or all of them; calls that hang in it go on."""
        for lifted in [rule] if rule is not None else list(self._rules):
            lifted.cleared.set()
        self._rules = [kept for kept in self._rules if not kept.cleared.is_set()]

    def take(self, operations: Iterable[str], path: str) -> Rule | None:
        """Return the rule that strikes this call, counted."""
        rule = next(
            (rule for rule in self._rules if self._left(rule) and rule.strikes(operations, path)), None
        )
        if rule is not None and rule.times is not None:
            rule.times -= 1
        return rule

    @staticmethod
    def _left(rule: Rule) -> bool:
        return rule.times is None or rule.times > 0

    async def down(self) -> None:
        """Stop listening and drop every connection: calls are refused until `up`."""
        await self._down()

    async def up(self) -> None:
        """Listen again, on the same port."""
        await self._up()


@dataclass(frozen=True)
class Call:
    """One call received."""

    operations: tuple[str, ...]  # GraphQL root fields, empty for other doors
    path: str
    monotonic: float  # seconds, when it came
    request_bytes: int  # the body as it came over the wire
    status: int  # what was answered; 0 when the connection was dropped

    @property
    def names(self) -> tuple[str, ...]:
        """What it is counted under: its operations or, without any, its path."""
        return self.operations or (self.path,)


class Calls:
    """The latest calls, and counts of all: `counts["patchEntity"]`, `request_bytes["patchEntity"]`."""

    def __init__(self) -> None:
        self.latest: deque[Call] = deque(maxlen=_CALLS_KEPT)
        self.counts: Counter[str] = Counter()
        self.request_bytes: Counter[str] = Counter()

    def add(self, call: Call) -> None:
        """Log one call; a document with two root fields counts for both."""
        self.latest.append(call)
        for name in set(call.names):
            self.counts[name] += 1
            self.request_bytes[name] += call.request_bytes

    def of(self, name: str) -> list[Call]:
        """Return the latest calls of one operation or path."""
        return [call for call in self.latest if name in call.names]
