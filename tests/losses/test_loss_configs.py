"""What a search-space file may say of the losses and of the scoring rule beside them."""

from typing import get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from tune_dlrml.domains import Range
from tune_dlrml.losses.registry import LOSSES, AnyLoss, build_loss, described, is_baseline
from tune_dlrml.losses.scoring_rules.config import SftTerm, WarmUp
from tune_dlrml.space import loss_at

LOSS = TypeAdapter(AnyLoss)
NAMES = [member.model_fields["name"].default for member in get_args(get_args(AnyLoss)[0])]
BARE = [
    name for name in NAMES if name not in ("dlrml", "mix", "custom", "proposed") and LOSSES[name].config.needs_reference
]


def parsed(**fields):
    return LOSS.validate_python(fields)


def refusal(**fields):
    with pytest.raises(ValidationError) as caught:
        parsed(**fields)
    (error,) = caught.value.errors()
    return error["msg"]


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"dlrml", "mix", "custom", "proposed"}))
def test_a_loss_needs_nothing_but_its_name(name):
    assert build_loss(parsed(name=name)).beta_kl > 0


@pytest.mark.parametrize("name", BARE)
def test_a_loss_can_search_its_beta(name):
    searched = parsed(name=name, beta={"log_uniform": [0.01, 0.5]})
    assert list(searched.domains()) == ["beta"]
    assert build_loss(loss_at(searched, {"beta": 0.3})).beta_kl == 0.3


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("simpo", {"beta": 2.0, "gamma": 1.0}),
        ("cpo", {"beta": 0.1, "nll_weight": 1.0}),
        ("orpo", {"beta": 0.1}),
        ("slic", {"delta": 1.0, "nll_weight": 0.5}),
        ("alphapo", {"alpha": 0.25, "beta": 2.5, "gamma": 0.1}),
        ("simper", {}),
    ],
)
def test_a_loss_without_a_reference_has_the_published_defaults_and_a_range_for_each(name, published):
    assert parsed(name=name).numbers() == published
    for field in published:
        searched = parsed(name=name, **{field: {"uniform": [0.1, 0.9]}})
        assert list(searched.domains()) == [field]
        if field != "alpha":
            with pytest.raises(ValidationError, match="greater than"):
                parsed(name=name, **{field: -0.1})


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("ipo", {"length_normalized": False}),
        ("kto", {"desirable_weight": 1.0, "undesirable_weight": 1.0, "kl_gradient": True}),
        ("dbaql", {"tau": 0.05, "temperature": 0.9}),
        ("aql", {"tau": 0.05, "quantile": 0.5, "quantile_rate": 0.01}),
        ("padll", {"decay": 0.9, "mismatch_penalty": 0.5}),
        ("aqfl", {"tau": 0.05, "quantile_rate": 0.05, "distance_scale": 0.1}),
        ("cell", {"alpha": 0.5}),
        ("pfl", {"focus_scale": 2.0}),
    ],
)
def test_the_constants_of_the_papers_are_the_defaults(name, constants):
    fields = parsed(name=name).model_dump()
    assert {key: fields[key] for key in constants} == constants
    assert set(fields) == {"name", "label", "beta"} | set(constants)


def test_every_loss_is_described_with_its_fields():
    documents = {document["name"]: document for document in described()}
    assert list(documents) == NAMES
    assert set(documents) == set(LOSSES)
    assert documents["kto"]["fields"].keys() == {"beta", "desirable_weight", "undesirable_weight", "kl_gradient"}
    assert all(document["description"].endswith((".", ";", ")", "d")) for document in documents.values())


def test_every_loss_is_described_with_its_shape_as_published():
    shapes = {document["name"]: document["shape"] for document in described()}
    assert shapes["dpo"] == {"c": None, "starts": "right", "trap": None, "bounded": True}
    for name, c in (("discopop", 20), ("dlrml", 80)):  # 1 / tau, and beta_mix / (tau * beta_kl)
        assert shapes[name]["c"] == pytest.approx(c) and shapes[name]["starts"] == "wrong" and shapes[name]["trap"] < 0
    assert not shapes["ipo"]["bounded"]  # a square
    assert shapes["mix"]["bounded"] and shapes["mix"]["trap"] is None  # of two convex losses with bounded slopes
    without = {name for name, entry in LOSSES.items() if not entry.config.needs_reference}
    assert {name for name, shape in shapes.items() if shape is None} == {*without, "custom", "proposed"}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": "hinge", "beta": 0.0}, "greater than 0"),
        ({"name": "cell", "alpha": 1.5}, "less than or equal to 1"),
        ({"name": "padll", "mismatch_penalty": {"uniform": [0.0, 2.0]}}, "less than or equal to 1"),
        ({"name": "ipo", "length_normalized": "yes"}, "valid boolean"),
        ({"name": "hinge", "beta_mix": 0.1}, "Extra inputs"),
        ({"name": "dpo", "sft": {"rule": "quadratic"}}, "'logarithmic', 'brier', 'spherical'"),
        ({"name": "dpo", "sft": {"rule": "brier", "alpha": 2.0}}, "for no other rule, but got an alpha for brier"),
        ({"name": "dpo", "sft": {"rule": "alpha_power"}}, "but got no alpha for alpha_power"),
        ({"name": "dpo", "sft": {"rule": "alpha_power", "alpha": 1.0}}, "greater than 1"),
        ({"name": "dpo", "sft": {"rule": "brier", "smoothing": 1.0}}, "less than 1"),
        ({"name": "dpo", "sft": {"rule": "brier", "weight": 0}}, "greater than 0"),
    ],
)
def test_an_illegal_value_is_refused_with_the_law(fields, says):
    assert says in refusal(**fields)


def test_weight_alpha_and_smoothing_of_an_sft_term_can_be_searched():
    term = {
        "rule": "pseudo_spherical",
        "weight": {"log_uniform": [0.01, 1.0]},
        "alpha": {"uniform": [1.2, 3.0]},
        "smoothing": {"choice": [0.0, 0.1]},
    }
    loss = parsed(name="dlrml", c=4.0, beta_kl={"log_uniform": [0.01, 0.5]}, sft=term)
    assert set(loss.domains()) == {"beta_kl", "sft.weight", "sft.alpha", "sft.smoothing"}
    drawn = loss_at(loss, {"beta_kl": 0.1, "sft.weight": 0.2, "sft.alpha": 2.0, "sft.smoothing": 0.1})
    assert drawn.sft == SftTerm(rule="pseudo_spherical", weight=0.2, alpha=2.0, smoothing=0.1)
    assert LOSS.validate_json(drawn.model_dump_json()) == drawn
    assert drawn.flat()["sft.weight"] == 0.2


def test_a_loss_without_an_sft_term_is_written_without_the_key():
    assert "sft" not in parsed(name="dpo").model_dump(mode="json")
    assert "sft" in parsed(name="dpo", sft={"rule": "brier"}).model_dump(mode="json")


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({"name": "aqfl"}, "aqfl"),
        ({"name": "dpo", "sft": {"rule": "brier"}}, "dpo_brier"),
        ({"name": "dlrml", "c": 4.0}, "dlrml_c"),
        ({"name": "dlrml", "beta_mix": 0.1, "sft": {}}, "dlrml_logarithmic"),
    ],
)
def test_a_branch_is_named_after_its_loss_and_the_rule_beside_it(fields, label):
    assert parsed(**fields).default_label() == label


def test_a_warm_up_takes_one_value_per_field():
    warm_up = WarmUp(rule="alpha_power", alpha=1.5, steps=50, learning_rate=1e-4)
    assert WarmUp.model_validate_json(warm_up.model_dump_json()) == warm_up
    with pytest.raises(ValidationError, match="all trials share one warm-up"):
        WarmUp(steps=50, learning_rate=1e-4, smoothing=Range(kind="uniform", low=0.0, high=0.2))
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        WarmUp(steps=0, learning_rate=1e-4)


@pytest.mark.parametrize(
    "section", [{"kind": "alpha"}, {"kind": "js", "alpha": 0.5}, {"kind": "alpha", "alpha": 1}, {"kind": "total"}]
)
def test_an_f_divergence_has_an_alpha_exactly_where_it_is_of_that_kind(section):
    with pytest.raises(ValidationError, match=r"alpha|kind"):
        parsed(name="dpo", f_divergence=section)


def test_an_f_divergence_is_part_of_a_branch_its_domains_and_what_is_stored():
    loss = parsed(name="hinge", f_divergence={"kind": "alpha", "alpha": {"uniform": [0.1, 0.9]}})
    assert loss.default_label() == "hinge_alpha"
    assert list(loss.domains()) == ["f_divergence.alpha"]
    assert loss_at(loss, {"f_divergence.alpha": 0.5}).f_divergence.alpha == 0.5
    assert "f_divergence" not in parsed(name="hinge").model_dump()


def test_dpo_under_another_divergence_is_not_what_all_is_compared_with():
    assert is_baseline(parsed(name="dpo", beta=0.3))
    assert not is_baseline(parsed(name="dpo", f_divergence={"kind": "js"}))
    assert not is_baseline(parsed(name="dpo", sft={"rule": "brier"}))


def test_a_length_weight_is_part_of_a_branch_its_domains_and_what_is_stored():
    loss = parsed(name="dpo", ld_alpha={"uniform": [0, 1]})
    assert loss.default_label() == "dpo_ld"
    assert list(loss.domains()) == ["ld_alpha"]
    assert loss_at(loss, {"ld_alpha": 0.5}).flat() == {"name": "dpo", "beta": 0.1, "ld_alpha": 0.5}
    assert "ld_alpha" not in parsed(name="dpo").model_dump()
    assert not is_baseline(loss)


@pytest.mark.parametrize("value", [-0.1, 1.1, {"choice": [0.5, 2.0]}])
def test_a_length_weight_lies_between_0_and_1(value):
    assert "than or equal to" in refusal(name="dpo", ld_alpha=value)


@pytest.mark.parametrize("name", sorted(name for name, entry in LOSSES.items() if not entry.config.needs_reference))
def test_a_loss_without_a_reference_weighs_no_lengths(name):
    assert refusal(name=name, ld_alpha=0.5).startswith(f"{name} takes none: it weighs log-ratios to a reference")
    assert "ld_alpha" not in next(each for each in described() if each["name"] == name)["options"]


def test_weights_of_pairs_are_part_of_a_branch_and_of_what_is_stored():
    loss = parsed(name="simpo", weighting="wpo", sft={"rule": "brier"})
    assert loss.default_label() == "simpo_brier_wpo"
    assert loss.flat()["weighting"] == "wpo" and "weighting" not in loss.numbers()
    assert "weighting" not in parsed(name="dpo").model_dump()
    assert not is_baseline(parsed(name="dpo", weighting="wpo"))
    assert "'wpo'" in refusal(name="dpo", weighting="other")


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_losses_that_sort_their_pairs_take_no_weights_of_pairs(name):
    assert refusal(name=name, weighting="wpo").startswith(f"{name} takes none: it sorts the completions")
    parts = [{"loss": {"name": "dpo"}}, {"loss": {"name": name}}]
    assert f"{name} among the parts takes none" in refusal(name="mix", parts=parts, weighting="wpo")
    assert parsed(name="mix", parts=parts).weighting is None


@pytest.mark.parametrize("name", ["kto", "apo_zero", "aot", "pfl"])
def test_a_loss_of_more_than_a_difference_of_scores_takes_no_f_divergence(name):
    with pytest.raises(ValidationError, match="f_divergence"):
        parsed(name=name, f_divergence={"kind": "js"})


MIX = {"name": "mix", "parts": [{"loss": {"name": "dpo"}, "weight": 0.8}, {"loss": {"name": "dpo", "beta": 0.5}}]}


def test_the_parts_of_a_sum_are_searched_by_their_places():
    loss = parsed(**MIX, sft={"rule": "brier"})
    assert loss.default_label() == "mix_dpo_dpo_brier"
    assert parsed(**loss.model_dump()) == loss
    weight, beta = {"uniform": [0.1, 0.9]}, {"log_uniform": [0.01, 1]}
    first, second = MIX["parts"]
    searched = parsed(name="mix", parts=[first | {"weight": weight}, second | {"loss": {"name": "ipo", "beta": beta}}])
    assert list(searched.domains()) == ["parts.0.weight", "parts.1.loss.beta"]
    point = loss_at(searched, {"parts.0.weight": 0.25, "parts.1.loss.beta": 0.5})
    assert (point.flat()["parts.0.weight"], point.parts[1].loss.beta, point.strength) == (0.25, 0.5, 0.1)
    assert not point.domains()


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"name": "mix", "parts": MIX["parts"]}, "mix"),
        ({"name": "custom", "function": "mine:own"}, "custom"),
        ({"name": "dlrml", "beta_mix": {"learnable": True, "c_init": 4}}, "learns nothing beside the policy"),
        ({"name": "simpo"}, "takes a reference"),
        ({"name": "dpo", "sft": {"rule": "brier"}}, "`sft` stands beside the sum"),
        ({"name": "dpo", "ld_alpha": 0.5}, "`ld_alpha` stands beside the sum"),
        ({"name": "dpo", "weighting": "wpo"}, "`weighting` stands beside the sum"),
        ({"name": "dpo", "bta": 1}, "Extra inputs"),
    ],
)
def test_what_cannot_be_a_part_of_a_sum_is_refused(part, says):
    with pytest.raises(ValidationError, match=says):
        parsed(name="mix", parts=[{"loss": {"name": "dpo"}}, {"loss": part}])


def test_a_sum_of_one_part_is_refused():
    assert refusal(name="mix", parts=MIX["parts"][:1]) == "a sum has two parts or more, but got 1"
