"""What a seed stands for: the fleet, the requests, how long they take, and which faults come when."""

import random
from dataclasses import dataclass
from functools import cache

from executor.claim import CLAIM_TERM
from executor.redrive import enough
from executor.settings import Settings, load_settings

EXECUTOR_ID = "remote"
EPOCH = 1_700_000_000.0  # when the virtual clock starts, seconds

FAULTS = (
    "crash", "pause", "stop", "hurry", "cut_queue", "cut_datahub", "cut_datahub_all", "cut_queue_all",
)  # fmt: skip
SHARE_OF_SHORT_TERMS = 0.25
SHARE_OF_HANDOVERS = 0.25
SHARE_OF_TERMS_THAT_END = 0.02
SHARE_OF_LONG_OUTAGES = 0.002
SHARE_OF_DIFFERENT_CLOCKS = 0.25
CLOCK_RATES = (
    0.01  # the most that an executor's clock goes ahead or behind: 2 % between two, docs/guarantees.md
)
HOLD_LIMIT = 43_200  # seconds, the queue's own
LEASES = (*16 * (12,), *8 * (30,), 120, 120, 300, 600)  # seconds
LEAST_UNPATCHED = 30  # seconds: of a shorter lease's proof period, two writes of a whole report take too much
LONG = 120  # seconds: leases from which on runs and faults are short beside them, or they would take all the time


@dataclass(frozen=True, slots=True)
class Server:
    """Which DataHub this is."""

    conditions: bool = True  # `If-Version-Match` is heeded
    properties: bool = True  # system metadata properties are kept
    patches: bool = True  # `patchEntity` is there


@dataclass(frozen=True, slots=True)
class Request:
    """One request: when it is sent, how, and what its processes do."""

    exec_id: str
    at: float
    kind: str  # "request", "reference"
    twice: float | None = None  # seconds after which it is sent again, as another message
    killed: float | None = None  # seconds after which it is cancelled
    kill_by: str = "both"  # "message", "aspect", "both"


@dataclass(slots=True)
class Plan:
    """Drawn once from the seed; the rest of the seed's chance decides what happens on the way."""

    seed: int
    lease: int  # visibility time-out, seconds
    hold_limit: int  # seconds
    max_workers: int
    max_attempts: int
    drain: float  # seconds
    executors: int
    server: Server
    requests: list[Request]
    faults: list[tuple[float, str, int]]  # when, what, which executor
    calm: float  # from when on nothing goes wrong any more
    longest_run: float  # seconds
    longest_build: float
    loss: float  # of an answer
    slow: float  # share of the calls that take long
    duplicates: float  # share of the receives after which the message is handed out once more
    stumbles: float  # share of the calls before which the caller is stopped for a while
    twins: bool  # both handles of a duplicate are valid
    redrive: int | None  # maxReceiveCount
    refuses_term: float  # share of the processes that ignore SIGTERM
    faultless: bool  # nothing goes wrong
    long_outage: bool  # DataHub is away for more than half an hour, and nothing else goes wrong
    rates: tuple[float, ...]  # of the executors' clocks: seconds of theirs in one of the world's
    claim_term: float = CLAIM_TERM  # seconds

    @property
    def fences(self) -> bool:
        """Whether a claim can be made by one executor alone, and its owner can tell often enough that it lives."""
        server = self.server
        return server.conditions and server.properties and (server.patches or self.lease >= LEAST_UNPATCHED)

    @property
    def few_receives(self) -> bool:
        """Whether the queue allows fewer receives of a message than the service asks for."""
        return self.redrive is not None and self.redrive < enough(self.max_attempts)


def draw(seed: int) -> Plan:
    """The plan of a seed."""
    chance = random.Random(seed)
    lease = chance.choice(LEASES)
    executors = chance.choice((2, 2, 2, 3))
    span = lease * chance.uniform(0.7, 3.0 if lease < LONG else 1.5)
    hold_limit = HOLD_LIMIT
    if lease < LONG and chance.random() < SHARE_OF_HANDOVERS:
        hold_limit = round(lease * chance.choice((3.75, 5.0)))
        span = hold_limit * chance.uniform(0.4, 1.2)  # a hand-over begins at half of it: amid the faults
    faulty = chance.random() > 0.03
    kinds = [kind for kind in FAULTS if chance.random() < 0.4] if faulty else []
    faults = sorted(
        (chance.uniform(0, span), chance.choice(kinds), chance.randrange(executors))
        for _ in range(chance.choice((1, 2, 3, 4, 6)) if kinds else 0)
    )
    many = (1, 1, 1, 1, 2) if faulty else (1, 1, 2, 6)  # more than there are slots
    requests = [_request(chance, number, span) for number in range(chance.choice(many))]
    server, generation = Server(), chance.random()
    if generation < 0.03:
        server = Server(patches=False)
    elif generation < 0.1:
        server = Server(
            conditions=chance.random() < 0.5, properties=chance.random() < 0.5, patches=chance.random() < 0.7
        )
    plan = Plan(
        seed=seed,
        lease=lease,
        hold_limit=hold_limit,
        max_workers=chance.choice((1, 1, 2)),
        max_attempts=chance.choice((1, 2, 3)),
        drain=chance.choice((0.0, lease / 2, 2.0 * lease)),
        executors=executors,
        server=server,
        requests=requests,
        faults=faults,
        calm=span,
        longest_run=_longest_run(chance, lease, hold_limit),
        longest_build=chance.choice((0.1, 1.0, lease * 2.5)),
        loss=chance.choice((0.0, 0.02, 0.1)) if faulty else 0.0,
        slow=chance.choice((0.0, 0.02, 0.1)) if faulty else 0.0,
        duplicates=chance.choice((0.0, 0.0, 0.2, 0.5)) if faulty else 0.0,
        stumbles=chance.choice((0.0, 0.0, 0.01, 0.03)) if "pause" in kinds else 0.0,
        twins=chance.random() < 0.5,
        redrive=chance.choice((None, None, None, 5, 10)),
        refuses_term=chance.choice((0.0, 0.3)),
        faultless=not faulty,
        long_outage=False,
        rates=(1.0,) * executors,
    )
    if hold_limit < HOLD_LIMIT:  # of which half may be over when a run gets its slot
        plan.longest_build = min(plan.longest_build, hold_limit / 4)
    if chance.random() < SHARE_OF_SHORT_TERMS:
        plan.claim_term = lease * chance.uniform(1.5, 3.0)
    if chance.random() < SHARE_OF_TERMS_THAT_END:
        _let_terms_end(plan, chance)
    if chance.random() < SHARE_OF_LONG_OUTAGES:
        _let_datahub_be_away(plan, chance)
    if chance.random() < SHARE_OF_DIFFERENT_CLOCKS:
        plan.rates = tuple(1.0 + chance.uniform(-CLOCK_RATES, CLOCK_RATES) for _ in range(plan.executors))
    return plan


def _let_terms_end(plan: Plan, chance: random.Random) -> None:
    """A long run has a second message, while its owner can't tell DataHub for a claim's term that it lives."""
    plan.lease, plan.hold_limit = min(plan.lease, 30), HOLD_LIMIT
    plan.claim_term = plan.lease * chance.uniform(1.5, 3.0)
    plan.calm = 25.0 * plan.lease
    plan.longest_run = 30.0 * plan.lease
    plan.longest_build = 1.0
    plan.requests = [
        Request("run-0", at=0.0, kind="request", twice=chance.uniform(0.0, 2.0 * plan.lease)),
    ]
    cuts = [(chance.uniform(0.5, 2.5) * plan.lease, "cut_datahub_long", chance.randrange(plan.executors))]
    plan.faults = sorted([*plan.faults[:1], *cuts])
    plan.faultless = False


def _let_datahub_be_away(plan: Plan, chance: random.Random) -> None:
    """For longer than a request waits for it, while a run goes on or before it has begun; nothing else happens."""
    plan.lease, plan.hold_limit, plan.claim_term = 120, HOLD_LIMIT, CLAIM_TERM
    plan.server, plan.max_workers, plan.drain = Server(), 1, 0.0
    plan.requests = [Request("run-0", at=chance.uniform(0.0, 60.0), kind="request")]
    begins, length = chance.uniform(0.0, 60.0), chance.uniform(31 * 60.0, 40 * 60.0)
    plan.faults, plan.calm = [(begins, "cut_datahub_half_an_hour", 0)], begins + length
    plan.faultless, plan.long_outage = False, True
    plan.longest_run, plan.longest_build = 3000.0, 1.0
    plan.loss = plan.slow = plan.duplicates = plan.stumbles = 0.0


def _longest_run(chance: random.Random, lease: int, hold_limit: int) -> float:
    if hold_limit < HOLD_LIMIT:  # long enough for a hand-over or two
        return 1.5 * hold_limit
    return lease * chance.choice((0.05, 0.3, 1.0, 1.0, 2.0, 4.0) if lease < LONG else (0.05, 0.3, 1.0, 1.5))


def _request(chance: random.Random, number: int, span: float) -> Request:
    return Request(
        exec_id=f"run-{number}",
        at=chance.uniform(0.0, span / 4),
        kind="reference" if chance.random() < 0.2 else "request",
        twice=chance.uniform(0.0, span) if chance.random() < 0.25 else None,
        killed=chance.uniform(0.0, span) if chance.random() < 0.25 else None,
        kill_by=chance.choice(("message", "aspect", "both")),
    )


def settings_of(plan: Plan) -> Settings:
    """The settings of a plan's executors."""
    return _settings(plan.lease, plan.hold_limit, plan.max_workers, plan.max_attempts, plan.drain)


@cache
def _settings(lease: int, hold_limit: int, workers: int, attempts: int, drain: float) -> Settings:
    return load_settings(
        {
            "DATAHUB_GMS_URL": "http://datahub.simulated.example",
            "DATAHUB_EXECUTOR_QUEUE": "https://sqs.eu-central-1.amazonaws.com/123456789012/queue",
            "DATAHUB_EXECUTOR_POOL_ID": EXECUTOR_ID,
            "DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT": str(lease),
            "DATAHUB_EXECUTOR_INGESTION_SIGNAL_POLL_INTERVAL": str(lease / 3),
            "DATAHUB_EXECUTOR_MESSAGE_HOLD_LIMIT": str(hold_limit),
            "DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS": str(workers),
            "DATAHUB_EXECUTOR_MAX_ATTEMPTS": str(attempts),
            "DATAHUB_EXECUTOR_DRAIN_TIMEOUT": str(drain),
        }
    )
