"""The chaos run's verdicts, on evidence made by hand; and its schedule of faults."""

import pytest

from benchmarks.chaos.evidence import HIDDEN, Evidence
from benchmarks.chaos.faults import Fault, Kind, Server, schedule
from benchmarks.chaos.records import Handed, Mark, Stored, Struck
from benchmarks.chaos.stage import Wire

LEASE = 20.0


def began(at: float, *, executor: int = 0, life: int = 1, pid: int = 1, exec_id: str = "r") -> Mark:
    return Mark("began", exec_id, executor, life, pid, at)


def ended(at: float, *, executor: int = 0, life: int = 1, pid: int = 1, exec_id: str = "r") -> Mark:
    return Mark("ended", exec_id, executor, life, pid, at)


def success(at: float, version: int = 2, exec_id: str = "r") -> Stored:
    return Stored(exec_id, "SUCCESS", version, at)


def struck(
    kind: Kind, begin: float, end: float, *executors: int, server: Server | None = None, life: int = 1
) -> Struck:
    return Struck(Fault(begin, kind, executors, end - begin, server), begin, end, life)


def evidence(
    *marks: Mark,
    stored: tuple[Stored, ...] = (),
    handed: tuple[Handed, ...] = (),
    faults: tuple[Struck, ...] = (),
) -> Evidence:
    return Evidence(["r"], marks, stored, handed, faults, executors=2, slots=2, lease=LEASE)


def test_a_run_that_nothing_happened_to_is_found_to_be_well() -> None:
    found = evidence(began(1), ended(2), stored=(Stored("r", "RUNNING", 1, 0.5), success(3)))
    assert found.lost() == {}
    assert found.twice() == []
    assert found.overwritten() == []
    assert found.takeovers() == []
    assert found.attempts() == {"r": 1}


@pytest.mark.parametrize(
    ("marks", "stored", "why"),
    [
        ((), (), "its status is none"),
        ((began(1), ended(2)), (Stored("r", "RUNNING", 1, 0.5),), "its status is RUNNING"),
        ((began(1),), (success(3),), "no process of it came to its end"),
        ((began(1), ended(4)), (success(3),), "stored before a process of it came to its end"),
    ],
)
def test_a_lost_request_is_found(marks: tuple[Mark, ...], stored: tuple[Stored, ...], why: str) -> None:
    assert why in evidence(*marks, stored=stored).lost()["r"]


def test_a_process_that_found_the_lock_taken_is_found() -> None:
    twice = Mark("twice", "r", 1, 1, 2, 5)
    second = began(5, executor=1, pid=2)
    assert evidence(began(1), twice, second, ended(9), stored=(success(10),)).twice() == [twice]


def test_two_processes_whose_times_overlap_are_found_without_the_lock() -> None:
    second = began(5, executor=1, pid=2)
    assert evidence(began(1), second, ended(9), ended(9.5, executor=1, pid=2)).twice() == [second]


def test_an_attempt_after_a_killed_one_is_not_twice_at_once() -> None:
    assert evidence(began(1), began(30, executor=1, pid=2), ended(40, executor=1, pid=2)).twice() == []


@pytest.mark.parametrize("later", [Stored("r", "RUNNING", 4, 5), Stored("r", "FAILURE", 4, 5)])
def test_a_terminal_status_that_was_written_over_is_found(later: Stored) -> None:
    assert evidence(stored=(Stored("r", "FAILURE", 3, 4), later)).overwritten() == ["r"]


def test_the_same_end_stored_again_overwrites_nothing() -> None:
    assert evidence(stored=(success(4), success(5))).overwritten() == []


def test_a_late_takeover_is_found() -> None:
    killed = struck("kill", 10, 15, 0)
    [takeover] = evidence(began(1), began(40, executor=1, pid=2), faults=(killed,)).takeovers()
    assert takeover.seconds == 30
    assert takeover.kind == "SIGKILL"


def test_only_what_ran_on_the_killed_executor_is_taken_over() -> None:
    killed = struck("kill", 10, 15, 0, life=2)
    elsewhere = (began(1, executor=1), began(20, executor=1, pid=2))
    over = (began(1, life=2), ended(9, life=2), began(20, life=3, pid=2))
    in_another_life = (began(1, life=1), began(20, life=3, pid=2))
    for marks in (elsewhere, over, in_another_life):
        assert evidence(*marks, faults=(killed,)).takeovers() == []


@pytest.mark.parametrize(("length", "count"), [(LEASE - 1, 0), (LEASE + 1, 1)])
def test_a_stop_counts_only_beyond_the_lease(length: float, count: int) -> None:
    stopped = struck("stop", 10, 10 + length, 0)
    marks = began(1), began(35, executor=1, pid=2)
    assert len(evidence(*marks, faults=(stopped,)).takeovers()) == count


SHOWN = 10 + LEASE * HIDDEN  # when the queue shows a message whose holder is killed at 10


def test_the_time_without_any_server_does_not_count_once_the_message_is_shown() -> None:
    faults = struck("kill", 10, 15, 0), struck("refused", 20, 32, 0, 1, server="sqs")
    [takeover] = evidence(began(1), began(40, executor=1, pid=2), faults=faults).takeovers()
    assert takeover.seconds == pytest.approx(30 - (32 - SHOWN))
    assert takeover.whole == 30


def test_the_time_without_a_free_slot_does_not_count() -> None:
    others = [
        mark
        for number, end in ((10, 41), (11, 43))
        for mark in (
            began(2, executor=1, pid=number, exec_id=f"other {number}"),
            ended(end, executor=1, pid=number, exec_id=f"other {number}"),
        )
    ]
    faults = struck("kill", 10, 12, 0), struck("stop", 20, 60, 0, life=2)
    [takeover] = evidence(began(1), began(41.5, executor=1, pid=2), *others, faults=faults).takeovers()
    assert takeover.seconds == pytest.approx(31.5 - (41 - SHOWN))


def test_a_slot_is_taken_while_the_owner_of_a_request_is_looked_for() -> None:
    others = [
        mark
        for number in (10, 11)
        for mark in (
            began(40, executor=1, pid=number, exec_id=f"other {number}"),
            ended(43, executor=1, pid=number, exec_id=f"other {number}"),
        )
    ]
    handed = Handed("other 10", 1, 29), Handed("other 11", 1, 29)
    faults = struck("kill", 10, 12, 0), struck("stop", 20, 60, 0, life=2)
    [takeover] = evidence(
        began(1), began(43.5, executor=1, pid=2), *others, faults=faults, handed=handed
    ).takeovers()
    assert takeover.seconds == pytest.approx(33.5 - (43 - 29))


def test_a_run_that_was_stopped_before_its_executor_died_is_not_taken_over() -> None:
    stopped = Mark("stopped", "r", 0, 1, 1, 9)
    marks = began(1), stopped, began(40, executor=1, pid=2)
    assert evidence(*marks, faults=(struck("kill", 10, 15, 0),)).takeovers() == []
    assert evidence(*marks).twice() == []


def test_a_second_fault_of_another_executor_changes_nothing_unless_it_had_the_message() -> None:
    faults = struck("kill", 10, 11, 0), struck("kill", 31, 33, 1)
    marks = began(1), began(50, life=2, pid=2)
    [takeover] = evidence(*marks, faults=faults).takeovers()
    assert takeover.seconds == 40
    [takeover] = evidence(*marks, faults=faults, handed=(Handed("r", 1, 30), Handed("r", 0, 50))).takeovers()
    assert takeover.seconds == 19


def test_a_fault_after_the_message_had_gone_to_another_one_does_not_count() -> None:
    faults = struck("kill", 10, 11, 0), struck("kill", 40, 43, 1)
    handed = Handed("r", 1, 30), Handed("r", 0, 35)
    marks = began(1), began(50, life=2, pid=2)
    [takeover] = evidence(*marks, faults=faults, handed=handed).takeovers()
    assert takeover.seconds == 40


def test_an_answer_that_reached_nobody_starts_the_count_anew() -> None:
    handed = (Handed("r", 1, 30, lost=True),)
    marks = began(1), began(50, executor=1, pid=2)
    [takeover] = evidence(*marks, faults=(struck("kill", 10, 11, 0),), handed=handed).takeovers()
    assert takeover.seconds == 20


def test_the_time_in_which_a_request_waited_for_datahub_does_not_count() -> None:
    faults = struck("kill", 10, 11, 0), struck("half-open", 25, 55, 1, server="datahub")
    marks = began(1), began(58, executor=1, pid=2)
    [takeover] = evidence(*marks, faults=faults, handed=(Handed("r", 1, 30),)).takeovers()
    assert takeover.seconds == 48 - (55 - 30)


def test_a_cut_of_datahub_for_all_is_taken_off_once() -> None:
    faults = struck("kill", 10, 11, 0), struck("refused", 32, 42, 0, 1, server="datahub")
    marks = began(1), began(50, executor=1, pid=2)
    [takeover] = evidence(*marks, faults=faults, handed=(Handed("r", 1, 30),)).takeovers()
    assert takeover.seconds == 40 - 10


@pytest.mark.parametrize(
    "harmless",
    [
        struck("refused", 39, 40, 1, server="sqs"),  # shorter than the lease
        struck("refused", 59, 90, 1, server="sqs"),  # long, but it was started nevertheless
        struck("stop", 39, 40, 1),
        struck("kill", 39, 40, 0, life=2),  # of another one
    ],
)
def test_a_fault_that_does_not_take_the_message_from_its_receiver_changes_nothing(harmless: Struck) -> None:
    marks = began(1), began(60, executor=1, pid=2)
    faults = struck("kill", 5, 6, 0), harmless
    [takeover] = evidence(*marks, faults=faults, handed=(Handed("r", 1, 22),)).takeovers()
    assert takeover.seconds == 55


@pytest.mark.parametrize(
    ("fatal", "since"),
    [
        (struck("drain", 30, 35, 1), 30),
        (struck("stop", 30, 30 + LEASE + 1, 1), 30),
        (struck("refused", 30, 30 + LEASE, 1, server="sqs"), 30),
        (struck("half-open", 21, 23, 1, server="sqs"), 22),  # the answer may have been lost
    ],
)
def test_a_fault_that_takes_the_message_from_its_receiver_starts_the_count_anew(
    fatal: Struck, since: float
) -> None:
    handed = Handed("r", 1, 22), Handed("r", 0, 55)
    marks = began(1), began(60, life=2, pid=2)
    [takeover] = evidence(*marks, faults=(struck("kill", 5, 6, 0), fatal), handed=handed).takeovers()
    assert takeover.seconds == 60 - since


def test_a_seed_repeats_its_faults_and_strikes_nobody_twice_at_once() -> None:
    faults = schedule(7, executors=4, seconds=300, lease=LEASE)
    assert faults == schedule(7, executors=4, seconds=300, lease=LEASE)
    assert faults != schedule(8, executors=4, seconds=300, lease=LEASE)
    kinds = {(fault.kind, fault.server is not None) for fault in faults}
    assert kinds >= {("kill", False), ("stop", False), ("refused", True), ("half-open", True)}
    ways = [(fault.server, number, fault) for fault in faults for number in fault.executors]
    for place, (server, number, fault) in enumerate(ways):
        for other_server, other, later in ways[place + 1 :]:
            if (server is None, server, number) == (other_server is None, other_server, other):
                assert later.at >= fault.at + fault.seconds


def test_a_request_is_heard_on_the_wire_even_in_two_pieces() -> None:
    handed: list[Handed] = []
    wire = Wire(3, "chaos-1-", handed)
    wire.hear(b'{"Body": "... chaos-1-00001 ... chaos-1-00001 ... chaos-1-00', False)
    wire.hear(b'002 ..."}', True)
    assert [(one.exec_id, one.executor, one.lost) for one in handed] == [
        ("chaos-1-00001", 3, False),
        ("chaos-1-00002", 3, True),
    ]
