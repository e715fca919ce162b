import pytest
from sample_losses import FREE, SHAPED

from tune_dlrml.export.card import geometry_sentences
from tune_dlrml.losses.lrml.config import DiscopopLoss
from tune_dlrml.losses.registry import build_loss


@pytest.mark.parametrize("config", SHAPED.values(), ids=SHAPED.keys())
def test_every_loss_has_its_shape_described(config):
    told = geometry_sentences(build_loss(config).geometry(), {})
    assert "At margin 0 the loss is " in told and "slope is " in told


def test_a_loss_that_starts_uphill_into_a_trap_says_so():
    discopop = build_loss(DiscopopLoss(beta=0.05)).geometry()
    told = geometry_sentences(discopop, {})
    assert "c = beta_mix / (tau * beta_kl) is 20 at the start." in told
    assert "descent first lowers the margin" in told
    assert "trap (local minimum) at z = -0.1186 and a barrier at z = 0.0720" in told


@pytest.mark.parametrize("config", FREE.values(), ids=FREE)
def test_a_loss_without_a_reference_says_so_in_place_of_a_shape(config):
    assert geometry_sentences(build_loss(config).geometry(), {}).startswith("It takes no reference")
