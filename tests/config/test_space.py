"""From the file's domains to the parameters a sampler draws, and from a drawn point to the trial it means."""

import math

import pytest

from tune_dlrml.config import TrainingConfig
from tune_dlrml.domains import Choice, Range, parse_domain
from tune_dlrml.losses.custom.config import CustomLoss, CustomParams
from tune_dlrml.losses.proposed.config import ProposedLoss
from tune_dlrml.space import BRANCH, SearchSpace, TrialSpec

TWO_LOSSES = """\
name: demo
model: org/model
dataset: {train: train.jsonl, eval: eval.jsonl}
training: {max_steps: 40, learning_rate: 1e-6, lora: {r: 8}}
search: {num_trials: 4, baseline: {beta: 0.1}}
space:
  losses:
    - {name: dpo, beta: {log_uniform: [0.01, 0.5]}}
    - name: dlrml
      beta_kl: {log_uniform: [0.01, 0.5]}
      beta_mix: {learnable: true, c_init: {uniform: [2, 8]}, learning_rate: 1e-2}
  training:
    learning_rate: {log_uniform: [1e-7, 1e-5]}
    lora: {r: {choice: [4, 8]}}
"""
POINT = {
    BRANCH: "dlrml_learnable",
    "dlrml_learnable.beta_kl": 0.02,
    "dlrml_learnable.beta_mix.c_init": 5.0,
    "training.learning_rate": 3e-6,
    "training.lora.r": 4,
}


@pytest.fixture
def space(load):
    return SearchSpace(load(TWO_LOSSES))


def test_each_branch_has_its_own_parameters_and_shares_those_of_training(space):
    shared = ["training.learning_rate", "training.lora.r"]
    assert list(space.domains("dpo")) == ["dpo.beta", *shared]
    assert list(space.domains("dlrml_learnable")) == list(POINT)[1:]
    assert space.choice_of_branch() == Choice(values=("dpo", "dlrml_learnable"))


def test_a_single_loss_leaves_no_branch_to_choose(document, load):
    text = document.replace("    - name: dpo\n      beta: 0.1\n", "")
    space = SearchSpace(load(text))
    assert space.choice_of_branch() is None
    assert space.branch_of({}) == "dlrml_c"
    assert space.spec(0, {"training.learning_rate": 1e-6}).loss.c == 4


def test_a_point_becomes_the_trial_it_names_and_nothing_else_changes(space, load):
    spec = space.spec(7, POINT)
    assert (spec.number, spec.attempt, spec.branch) == (7, 0, "dlrml_learnable")
    assert (spec.loss.beta_kl, spec.loss.beta_mix.c_init, spec.loss.beta_mix.learning_rate) == (0.02, 5.0, 1e-2)
    assert (spec.training.learning_rate, spec.training.lora.r) == (3e-6, 4)
    assert spec.training.at({"learning_rate": 1e-6, "lora.r": 8}) == load(TWO_LOSSES).training
    assert spec.params == POINT


def trial_of(loss):
    return TrialSpec(number=0, branch="bend", loss=loss, training=TrainingConfig(max_steps=9), params={})


def test_the_strength_of_a_written_loss_is_called_as_in_other_losses_and_its_other_scalars_as_its_own():
    code = "def bend(pairs, *, beta, tau):\n    return F.softplus(tau - beta * pairs.margin_B)"
    proposed = trial_of(ProposedLoss(code=code, params=CustomParams(beta=0.1, tau=2.0)))
    assert proposed.settings() == {"loss": "proposed", "beta": 0.1, "params.tau": 2.0}
    params = {"beta_kl": {"learnable": True, "init": 0.2}, "beta": 3.0}
    custom = trial_of(CustomLoss(function="losses:bend", params=CustomParams(**params)))
    assert custom.shown() == {"beta_kl.init": 0.2, "params.beta": 3.0}
    assert custom.settings()["beta_kl.learning_rate"] == 1e-2
    by_default = ProposedLoss(code=code.replace("beta,", "beta=0.5,"), params=CustomParams(tau=2.0))
    assert trial_of(by_default).shown() == {"params.tau": 2.0}


def test_a_trial_survives_json(space):
    spec = space.spec(7, POINT)
    assert TrialSpec.from_json(spec.model_dump(mode="json")) == spec


def test_the_settings_of_a_trial_are_its_loss_and_what_the_search_varies(space):
    assert space.spec(7, POINT).settings() == {
        "loss": "dlrml",
        "beta_kl": 0.02,
        "beta_mix.learnable": True,
        "beta_mix.c_init": 5.0,
        "beta_mix.learning_rate": 1e-2,
        "beta_mix.c_bounds": [1.0, 9.1],
        "tau": 0.05,
        "numerics": "stable",
        "learning_rate": 3e-6,
        "lora.r": 4,
    }


def test_the_baseline_is_plain_dpo_under_the_settings_outside_the_space(space):
    spec = space.baseline_spec(0)
    assert (spec.branch, spec.loss.name, spec.loss.beta, spec.params) == ("baseline", "dpo", 0.1, {})
    assert (spec.training.learning_rate, spec.training.lora.r) == (1e-6, 8)


def test_the_baseline_is_a_point_where_the_space_holds_it(space):
    point = space.baseline_point()
    assert point == {BRANCH: "dpo", "dpo.beta": 0.1, "training.learning_rate": 1e-6, "training.lora.r": 8}
    as_point, as_baseline = space.spec(0, point), space.baseline_spec(0)
    assert (as_point.loss, as_point.training) == (as_baseline.loss, as_baseline.training)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("baseline: {beta: 0.1}", "baseline: {beta: 0.6}"),
        ("baseline: {beta: 0.1}", "baseline: null"),
        ("learning_rate: 1e-6", "learning_rate: 1e-4"),
        ("lora: {r: 8}", "lora: {r: 6}"),
        ("name: dpo", "name: discopop"),
    ],
    ids=["beta outside", "switched off", "rate outside", "rank outside", "no dpo branch"],
)
def test_a_baseline_outside_the_space_is_no_point_of_it(old, new, load):
    assert SearchSpace(load(TWO_LOSSES.replace(old, new))).baseline_point() is None


def test_branches_of_one_loss_have_distinct_names(load):
    losses = (
        "[{name: dpo}, {name: dpo}, {name: dpo, label: mild, beta: 0.01}, {name: dlrml, c: 2}, {name: dlrml, c: 4}]"
    )
    space = SearchSpace(load(TWO_LOSSES, f"space.losses={losses}"))
    assert list(space.branches) == ["dpo", "dpo_2", "mild", "dlrml_c", "dlrml_c_2"]
    assert space.spec(0, {BRANCH: "dlrml_c_2"}).loss.c == 4


def test_a_grid_is_the_product_of_each_branch_alone(load):
    losses = "[{name: dpo, beta: {choice: [0.1, 0.2]}}, {name: dlrml, c: {log_uniform: [1, 9], num: 3}}]"
    training = "{learning_rate: {uniform: [1e-6, 3e-6], num: 3}}"
    config = load(TWO_LOSSES, "search.sampler=grid", f"space.losses={losses}", f"space.training={training}")
    grid = list(SearchSpace(config).grid())
    assert len(grid) == 2 * 3 + 3 * 3
    assert grid[0] == {BRANCH: "dpo", "dpo.beta": 0.1, "training.learning_rate": 1e-6}
    assert grid[-1] == {BRANCH: "dlrml_c", "dlrml_c.c": 9, "training.learning_rate": 3e-6}
    assert len({tuple(point.items()) for point in grid}) == len(grid)


@pytest.mark.parametrize(
    ("written", "grid"),
    [
        ({"uniform": [0, 1], "num": 5}, [0, 0.25, 0.5, 0.75, 1]),
        ({"log_uniform": [1e-4, 1e-2], "num": 3}, [1e-4, 1e-3, 1e-2]),
        ({"int_uniform": [1, 8], "num": 3}, [1, 4, 8]),
        ({"int_uniform": [1, 3], "num": 9}, [1, 2, 3]),
        ({"log_int_uniform": [1, 100], "num": 3}, [1, 10, 100]),
        ({"choice": [0.1, None, "a"]}, [0.1, None, "a"]),
    ],
)
def test_a_grid_is_even_on_the_scale_of_its_domain_and_ends_at_its_bounds(written, grid):
    points = parse_domain(written).grid()
    assert points == pytest.approx(grid) if "choice" not in written else points == grid
    assert all(point in parse_domain(written) for point in points)
    assert len(set(points)) == len(points)


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        (Range(kind="uniform", low=0, high=1), [0, 0.5, 1.0], [-0.1, 1.1, True, "0", None, math.nan]),
        (Range(kind="int_uniform", low=1, high=4), [1, 4], [1.0, 5, True]),
        (Choice(values=(1, False)), [1, 1.0, False], [True, 0, None]),
    ],
)
def test_a_domain_knows_its_values_by_type_as_well(domain, inside, outside):
    assert all(value in domain for value in inside)
    assert not any(value in domain for value in outside)


@pytest.mark.parametrize(
    ("epochs", "rows", "workers", "steps"), [(2, 6750, 1, 844), (1, 64, 2, 2), (0.01, 10, 1, 1), (1, 65, 1, 5)]
)
def test_epochs_are_counted_in_optimizer_steps_of_all_workers(epochs, rows, workers, steps, document, load):
    training = load(document, "training.max_steps=null", f"training.num_train_epochs={epochs}").training
    training = training.at({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8})
    assert training.steps(rows, workers) == steps


def test_a_baseline_is_no_point_of_a_branch_that_fixes_another_field(load):
    losses = "[{name: dpo, beta: {log_uniform: [0.01, 0.5]}, sft: {rule: logarithmic, weight: 0.1}}, {name: hinge}]"
    assert SearchSpace(load(TWO_LOSSES, f"space.losses={losses}")).baseline_point() is None
