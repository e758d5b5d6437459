"""What it costs, in money and in calls. Prices and quotas are parameters, with the day they were looked up."""

from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.scaling.fleet import Outcome
from benchmarks.scaling.load import DAY, HOUR
from executor.heartbeat import renewal_interval
from executor.queue.sqs import LONG_POLL_LIMIT
from executor.reporter import SHORTEST_INTERVAL
from executor.settings import Settings

PRICES_OF = "June 2026"  # us-east-1, Linux on x86, on demand: *AWS Fargate Pricing*, *Amazon SQS Pricing*
VCPU_HOUR = 0.04048  # $
GB_HOUR = 0.004445  # $
STORAGE_GB_HOUR = 0.000111  # $, beyond the first 20 GB
SQS_MILLION = 0.40  # $, standard queue

# What the executor sends at its defaults; what is not asked for here was counted.
DEFAULTS = Settings.model_construct()  # without what has no default: DataHub's address, and the queue
POLL = DEFAULTS.signal_poll_interval  # seconds between two looks for kill signals
BEAT = DEFAULTS.beat_interval  # seconds between two signs of life of a quiet run
PROGRESS = SHORTEST_INTERVAL  # seconds between two progress writes of a run whose log grows
RENEWAL = renewal_interval(DEFAULTS.message_visibility, DEFAULTS.proof_period)  # seconds
RECEIVES = 3 / LONG_POLL_LIMIT  # a second, of an idle task: three long polls; a busy one makes fewer
CLAIM_READS, CLAIM_WRITES, END_WRITES = 2, 1, 1  # calls a run
SQS_CALLS_A_RUN = 2  # sent, deleted; it comes with a receive


@dataclass(frozen=True, slots=True)
class TaskSize:
    """What a task of four runs at a time is given: the defaults of the templates."""

    vcpus: float = 2.0
    memory: float = 8.0  # GB
    storage: float = 50.0  # GB

    @property
    def hourly(self) -> float:
        """$ an hour."""
        return self.vcpus * VCPU_HOUR + self.memory * GB_HOUR + (self.storage - 20) * STORAGE_GB_HOUR


def dollars(outcome: Outcome) -> float:
    """$ for all tasks of a simulation."""
    return outcome.task_seconds / HOUR * TaskSize().hourly


class Calls(NamedTuple):
    """Calls a second."""

    sqs: float
    reads: float  # of DataHub
    writes_at_least: float
    writes_at_most: float


def calls(outcome: Outcome, seconds: float) -> Calls:
    """What a fleet asks of its servers. DataHub's are bundled for all runs of a task; idle tasks count as busy."""
    runs, tasks = len(outcome.waits) / seconds, outcome.task_seconds / seconds
    return Calls(
        sqs=runs * SQS_CALLS_A_RUN + tasks * RECEIVES + outcome.run_seconds / seconds / RENEWAL,
        reads=runs * CLAIM_READS + tasks / POLL,
        writes_at_least=runs * (CLAIM_WRITES + END_WRITES) + tasks / BEAT,
        writes_at_most=runs * (CLAIM_WRITES + END_WRITES) + tasks / PROGRESS,
    )


def sqs_dollars_a_month(sqs_calls_a_second: float) -> float:
    """$ for thirty days."""
    return sqs_calls_a_second * 30 * DAY / 1e6 * SQS_MILLION
