"""A third of the schedules that every test run goes through."""

from tests.simulation.chunks import no_rule_is_broken


def test_no_rule_is_broken() -> None:
    no_rule_is_broken(2)
