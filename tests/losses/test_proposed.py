"""A proposed loss: its text is all there is of it, and it computes what Python computes of that text."""

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError

from tune_dlrml.errors import InputError
from tune_dlrml.losses.preference import PairBatch
from tune_dlrml.losses.proposed.config import HEAD
from tune_dlrml.losses.proposed.vocabulary import FIELDS, METHODS
from tune_dlrml.losses.registry import AnyLoss, build_loss
from tune_dlrml.space import loss_at
from tune_dlrml.system.own_code import load_function

LOSS = TypeAdapter(AnyLoss)
MIXED = '''def mixed(pairs, *, beta, tau=0.2):
    """Logistic where the pair is ranked wrong, exponential where it is right."""
    z: torch.Tensor = beta * pairs.margin_B
    m = torch.sigmoid(z / tau)
    total = 0.0
    for i in range(1, 4):
        total = total + z.clamp(min=-1.0, max=1.0) ** i / i
    if tau > 10:
        return total
    return (1 - m) * torch.nn.functional.softplus(-z) + m * torch.exp(-z) + 0.01 * total
'''


def parsed(**fields):
    return LOSS.validate_python({"name": "proposed", **fields})


def pairs(*margins):
    margin_B = torch.tensor(margins, dtype=torch.float64)
    length_B = torch.full(margin_B.shape, 5)
    return PairBatch(0.25 * margin_B, -0.75 * margin_B, length_B, length_B)


def test_it_is_named_after_its_function_and_searched_by_its_scalars():
    loss = parsed(code=MIXED, params={"beta": {"log_uniform": [0.01, 1.0]}})
    assert loss.default_label() == "mixed"
    assert set(loss.domains()) == {"params.beta"}
    drawn = loss_at(loss, {"params.beta": 0.25})
    assert (drawn.strength, drawn.flat()["code"]) == (0.25, MIXED)
    assert LOSS.validate_json(drawn.model_dump_json()) == drawn


def test_its_strength_is_the_default_of_beta_where_none_is_given():
    loss = parsed(code="def f(pairs, *, beta=0.25):\n    return F.softplus(-beta * pairs.margin_B)")
    assert (loss.strength, build_loss(loss).beta_kl) == (0.25, 0.25)


def test_it_computes_what_the_text_says():
    loss = build_loss(parsed(code=MIXED, params={"beta": 0.5}))
    for margin, value in zip((-3.0, 0.0, 1.0), loss(pairs(-3.0, 0.0, 1.0)).tolist(), strict=True):
        z = 0.5 * margin
        m, inside = 1 / (1 + math.exp(-z / 0.2)), min(max(z, -1.0), 1.0)
        terms = sum(inside**i / i for i in (1, 2, 3))
        assert value == pytest.approx((1 - m) * math.log1p(math.exp(-z)) + m * math.exp(-z) + 0.01 * terms)


def test_in_a_file_of_its_own_the_text_computes_the_same(tmp_path):
    config = parsed(code=MIXED, params={"beta": 0.5})
    file = tmp_path / "0001.py"
    file.write_text(config.module())
    assert config.module().startswith(HEAD)
    own = load_function(f"{file}:mixed").call
    assert torch.equal(own(pairs(-2.0, 0.4), beta=0.5), build_loss(config)(pairs(-2.0, 0.4)))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "required"),
        ({"code": "x = 1"}, "line 1: one `def` alone"),
        ({"code": MIXED}, "mixed takes beta, which has no default"),
        ({"code": MIXED, "params": {"beta": 0.1, "heat": 1}}, "mixed takes beta, tau, but got heat"),
        ({"code": MIXED, "params": {"beta": "high"}}, "a scalar of a proposed loss is a number"),
        ({"code": MIXED.replace("torch.exp", "torch.load"), "params": {"beta": 0.1}}, r"line 10: .*torch\.load"),
    ],
)
def test_what_cannot_be_a_proposed_loss_is_refused_with_the_law(fields, says):
    with pytest.raises(ValidationError, match=says):
        parsed(**fields)


def test_an_error_names_the_line():
    code = "def f(pairs, *, beta):\n    z = beta * pairs.margin_B\n    a, b = z\n    return a"
    with pytest.raises(InputError, match="at <f>:3"):
        build_loss(parsed(code=code, params={"beta": 0.1}))


@pytest.mark.parametrize("power", ["3 ** 3 ** 3 ** 3", "(1 << 2)", "k * k"])
def test_whole_numbers_cannot_fill_the_memory(power):
    lines = ["def f(pairs, *, beta):", "    k = 3", "    for i in range(9):", "        k = k * k"]
    code = "\n".join([*lines, f"    return {power} * pairs.margin_B"])
    with pytest.raises((InputError, ValidationError), match=r"63 bits|LShift"):
        build_loss(parsed(code=code, params={"beta": 0.1}))


def test_the_fields_and_methods_of_the_language_are_those_of_a_batch_and_of_a_tensor():
    properties = {name for name, value in vars(PairBatch).items() if isinstance(value, property)}
    assert {*PairBatch._fields, *properties} == set(FIELDS)
    assert [name for name in METHODS if not hasattr(torch.Tensor, name)] == []


def test_functions_have_no_place_by_position_for_work_in_place():
    margin_B = torch.tensor([-1.0, 2.0])
    for text in ("F.relu(x, True)", "F.elu(x, 1.0, True)", "F.leaky_relu(x, 0.1, True)", "F.threshold(x, 0, 0, True)"):
        code = f"def f(pairs, *, beta):\n    x = pairs.margin_B\n    return {text}"
        with pytest.raises(ValidationError, match=r"at most . by position"):
            parsed(code=code, params={"beta": 0.1})
        before = margin_B.clone()
        eval(text, {"F": F, "x": margin_B})
        assert not torch.equal(before, margin_B)
        margin_B = before
