"""How far replies come before anything is trained, and what goes back to their proposer."""

from collections.abc import Iterator

import pytest
from made_search import discovery_search

from tune_dlrml.discovery.examining import Examined, Examiner
from tune_dlrml.space import SearchSpace

CONFIG = discovery_search(space={"scalars": {"gap": {"uniform": [0.5, 1.5]}}}, seeds_losses=["dpo"])


def reply(form: str, scalars: str = "beta", said: str = "    # beta: 0.1 to 1, log\n") -> str:
    return (
        f"An idea.\n```python\ndef mine(pairs, *, {scalars}):\n{said}"
        f"    z = beta * pairs.margin_B\n    return {form}\n```"
    )


@pytest.fixture(scope="module")
def examiner() -> Iterator[Examiner]:
    with Examiner(CONFIG) as examiner:
        yield examiner


def examined(examiner: Examiner, text: str, **known: Examined) -> Examined:
    losses = {name: each.loss for name, each in known.items() if each.loss is not None}
    return examiner.examine(text, {**SearchSpace(CONFIG).branches, **losses})


def test_a_new_loss_is_accepted_with_what_was_measured(examiner: Examiner):
    found = examined(examiner, reply("F.softplus(-z) - 0.1 * torch.tanh(z)"))
    assert (found.stage, found.name, found.reasoning, found.reason) == ("accepted", "mine", "An idea.", "")
    # d/dz at 0: -1/2 - 0.1.
    assert found.found["slope"] == pytest.approx(-0.6, abs=1e-6)
    assert (found.found["trap"], found.found["bounded"], found.found["coupled"]) == (None, True, False)


def test_a_scalar_without_a_range_takes_that_of_the_space(examiner: Examiner):
    found = examined(examiner, reply("torch.relu(gap - z) ** 2", "beta, gap"))
    assert found.loss is not None
    domains = {name: domain.as_yaml() for name, domain in found.loss.domains().items()}
    assert domains == {"params.beta": {"log_uniform": [0.1, 1]}, "params.gap": {"uniform": [0.5, 1.5]}}


def test_a_loss_that_starts_uphill_is_refused_with_its_slope(examiner: Examiner):
    found = examined(examiner, reply("F.softplus(z)"))
    assert found.stage == "checks"
    assert "uphill" in found.reason and "+0.5" in found.reason


def test_a_loss_without_one_value_for_each_pair_is_refused(examiner: Examiner):
    found = examined(examiner, reply("F.softplus(-z).mean()"))
    assert found.stage == "checks"


def test_a_double_is_sent_back_with_its_name(examiner: Examiner):
    found = examined(examiner, reply("torch.log(1 + torch.exp(-2 * z))"))
    assert found.stage == "novelty"
    assert found.reason.startswith("same as dpo")


def test_a_double_that_starts_uphill_is_named(examiner: Examiner):
    # DiscoPOP at tau 0.05: logistic and exponential loss, mixed by the sigmoid of z / tau.
    mixed = "(1 - torch.sigmoid(z / 0.05)) * F.softplus(-z) + torch.sigmoid(z / 0.05) * torch.exp(-z)"
    found = examined(examiner, reply(mixed))
    assert found.stage == "novelty"
    assert "discopop" in found.reason


def test_an_earlier_proposal_under_another_name_is_a_double_of_it(examiner: Examiner):
    first = examined(examiner, reply("torch.relu(0.6 - z) ** 2"))
    again = examined(examiner, reply("torch.clamp(0.6 - z, min=0.0) ** 2"), first=first)
    assert first.stage == "accepted"
    assert again.stage == "novelty" and again.reason.startswith("same as first")


def test_what_is_no_function_is_refused_without_a_check(examiner: Examiner):
    found = examined(examiner, "I would rather not.")
    assert (found.stage, found.loss, found.found) == ("syntax", None, {})
