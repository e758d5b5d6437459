"""Each broken rule is noticed, by the right one of the simulation's checks."""

import pytest

from tests.simulation.mutations import MUTATIONS, Mutation, first_breach


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_broken_rule_is_noticed(mutation: Mutation) -> None:
    outcome = first_breach(mutation)

    assert outcome is not None, f"{mutation.within} seeds did not notice that {mutation.name}"
    assert outcome.breach is not None
    assert outcome.breach[0] in mutation.noticed_by, f"seed {outcome.seed}: {outcome.breach}"
