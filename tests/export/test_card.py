from typing import get_args

import pytest
from export.test_loss_source import LOSSES, WITH_DEFAULTS, parsed

from tune_dlrml.export.card import geometry_sentences
from tune_dlrml.losses.registry import AnyLoss, build_loss


@pytest.mark.parametrize("loss", [*LOSSES, *WITH_DEFAULTS], ids=str)
def test_every_loss_has_its_shape_described(loss):
    told = geometry_sentences(build_loss(parsed(loss)).geometry(), {})
    assert "At margin 0 the loss is " in told and "slope is " in told


def test_a_loss_that_starts_uphill_into_a_trap_says_so():
    discopop = build_loss(parsed({"name": "discopop", "beta": 0.05})).geometry()
    told = geometry_sentences(discopop, {})
    assert "c = beta_mix / (tau * beta_kl) is 20 at the start." in told
    assert "descent first lowers the margin" in told
    assert "trap (local minimum) at z = -0.1186 and a barrier at z = 0.0720" in told


def test_the_losses_above_are_all_that_there_are():
    names = {loss.model_fields["name"].default for loss in get_args(get_args(AnyLoss)[0])}
    assert names - {"custom"} == {loss["name"] for loss in [*LOSSES, *WITH_DEFAULTS]}
