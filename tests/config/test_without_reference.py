"""A search without a reference, and what it refuses before it starts."""

import pytest
from made_search import small_search

from tune_dlrml.errors import InputError

FREE = {"name": "simpo", "beta": {"log_uniform": [1, 10]}}


def made(losses=(FREE,), **search):
    return small_search(search={"num_trials": 3, **search}, space={"losses": list(losses)})


@pytest.mark.parametrize(
    ("losses", "search", "needed"),
    [
        ([FREE], {}, True),
        ([FREE], {"baseline": None, "metric": "eval_policy_margin"}, False),
        ([FREE, {"name": "dpo"}], {"baseline": None}, True),
    ],
)
def test_a_search_has_a_reference_for_its_losses_or_its_baseline(losses, search, needed):
    assert made(losses, **search).needs_reference() == needed


@pytest.mark.parametrize("ld_alpha", [None, 1.0, {"uniform": [0, 1]}])
def test_a_search_weighs_lengths_where_a_loss_of_it_does(ld_alpha):
    assert made([{"name": "dpo"}, {"name": "ipo", "ld_alpha": ld_alpha}]).weighs_length() == (ld_alpha is not None)


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({"baseline": None}, "eval_accuracy compares with the reference.*take eval_policy_accuracy"),
        ({"baseline": None, "metric": "eval_margin"}, "eval_margin compares with the reference"),
        ({"metric": "eval_policy_accuracy"}, "by a search without a reference alone; take eval_accuracy"),
        (
            {"baseline": None, "metric": "eval_policy_accuracy", "constraints": {"eval_kl": {"max": 5}}},
            "eval_kl compares with the reference",
        ),
        (
            {"baseline": None, "metric": "eval_policy_accuracy", "confirm": {"top": 2}},
            "compares with DPO, which takes a reference",
        ),
    ],
)
def test_what_needs_the_other_kind_of_search_is_refused_with_the_remedy(search, words):
    with pytest.raises(InputError, match=words):
        made(**search)
