"""How the trials of a search are called in the picture of the frontier."""

from typing import Any

import pytest

from tune_dlrml.benches.setting import settings_of
from tune_dlrml.benches.subject import Loaded
from tune_dlrml.config import TrainingConfig
from tune_dlrml.evaluation.frontier.picture import Setting
from tune_dlrml.losses.custom.config import CustomParams
from tune_dlrml.losses.dpo.config import DpoLoss
from tune_dlrml.losses.lrml.config import DiscopopLoss, DlrmlLoss, LearnableBetaMix
from tune_dlrml.losses.proposed.config import ProposedLoss
from tune_dlrml.space import TrialSpec


def trial(loss: Any, number: int = 0, **training: Any) -> Loaded:
    settings = TrainingConfig(max_steps=8, **training)
    spec = TrialSpec(number=number, branch="branch", loss=loss, training=settings, params={})
    return Loaded(f"search:{number}", "org/base", spec=spec)


def straight(**params: float) -> ProposedLoss:
    code = "def straight(pairs, *, beta, gap):\n    return gap - beta * pairs.margin_B"
    return ProposedLoss(code=code, params=CustomParams(**params))


def test_what_all_trials_of_a_loss_share_is_in_no_note():
    losses = [DpoLoss(beta=0.1), DpoLoss(beta=0.5), DiscopopLoss(beta=0.1), DlrmlLoss(beta_kl=0.1, c=4)]
    assert settings_of([trial(loss) for loss in losses]) == [
        Setting("DPO", "β 0.1"),
        Setting("DPO", "β 0.5"),
        Setting("DiscoPOP", "β 0.1"),
        Setting("dLRML, c = 4", "β 0.1"),
    ]


def test_trials_that_differ_in_nothing_or_in_their_seed_are_repeats():
    first, same, reseeded = (trial(DpoLoss(), number, seed=seed) for number, seed in enumerate((0, 0, 7)))
    assert len(set(settings_of([first, same, reseeded]))) == 1


@pytest.mark.parametrize(
    ("one", "other", "note"),
    [
        (DlrmlLoss(c=4), DlrmlLoss(c=5), "β 0.05, c 4"),
        (DlrmlLoss(beta_mix=0.01), DlrmlLoss(beta_mix=0.02), "β 0.05, beta_mix 0.01"),
        (DlrmlLoss(beta_mix=0.01, tau=0.1), DlrmlLoss(beta_mix=0.01, tau=0.2), "β 0.05, tau 0.1"),
        (DiscopopLoss(), DiscopopLoss(numerics="published"), "β 0.05, numerics stable"),
        (
            DlrmlLoss(beta_mix=LearnableBetaMix(c_init=4)),
            DlrmlLoss(beta_mix=LearnableBetaMix(c_init=5)),
            "β 0.05, beta_mix.c_init 4",
        ),
        (DpoLoss(beta=0.12341), DpoLoss(beta=0.12342), "β 0.12341"),
        (straight(beta=0.1, gap=1.0), straight(beta=0.1, gap=2.0), "β 0.1, params.gap 1"),
    ],
)
def test_whatever_differs_between_trials_of_a_loss_is_in_their_notes(one, other, note):
    first, second = settings_of([trial(one), trial(other)])
    assert first.note == note
    assert second.label == first.label and second.note != first.note


def test_three_ways_to_mix_have_three_labels():
    losses = [DlrmlLoss(c=4), DlrmlLoss(beta_mix=0.01), DlrmlLoss(beta_mix=LearnableBetaMix(c_init=4))]
    assert [setting.label for setting in settings_of([trial(loss) for loss in losses])] == [
        "dLRML, c = 4",
        "dLRML, fixed β_mix",
        "dLRML, learned β_mix",
    ]


def test_training_that_differs_is_in_the_note_of_every_loss():
    trials = [trial(DpoLoss(), learning_rate=1e-3), trial(DlrmlLoss(c=4), learning_rate=5e-4)]
    assert [setting.note for setting in settings_of(trials)] == [
        "β 0.1, learning_rate 0.001",
        "β 0.05, learning_rate 0.0005",
    ]
