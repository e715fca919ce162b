"""Every loss trains the toy: what descends raises the held-out margin, and what starts uphill falls into its trap."""

import pytest
import toy_training

from tune_dlrml.records import State

DESCENDING = ["hinge", "ipo", "kto", "dbaql", "padll", "aqfl", "cell", "pfl"]


@pytest.fixture(scope="module")
def resident(toy_model):
    return toy_training.resident(toy_model, toy_training.settings())


def trained(resident, loss):
    outcome, channel = toy_training.run(resident, loss, toy_training.settings(), toy_training.plan(16))
    assert outcome.state == State.COMPLETE
    return channel.reports[-1].metrics


@pytest.mark.parametrize("name", DESCENDING)
def test_a_loss_that_starts_downhill_raises_the_held_out_margin(resident, name):
    metrics = trained(resident, {"name": name, "beta": 0.1})
    assert metrics["eval_margin"] > 0.5
    assert metrics["eval_trap_fraction"] == 0
    assert "c" not in metrics


def test_aql_as_published_falls_into_its_trap(resident):
    metrics = trained(resident, {"name": "aql", "beta": 0.1})
    # The trap is at z = -0.092.
    assert -1.5 < metrics["eval_margin"] < -0.3
    assert metrics["eval_trap_fraction"] == 1
