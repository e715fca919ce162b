"""A user's own loss: how it is named, found, built, learnt and tied to its file."""

import hashlib
import importlib
import math
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from tune_dlrml.errors import InputError
from tune_dlrml.losses.lrml.geometry import dlrml_geometry
from tune_dlrml.losses.preference import PairBatch
from tune_dlrml.losses.registry import AnyLoss, build_loss
from tune_dlrml.space import loss_at
from tune_dlrml.system.own_code import load_function

LOSS = TypeAdapter(AnyLoss)
LOGISTIC = "def f(pairs, *, beta):\n    return torch.nn.functional.softplus(-beta * pairs.margin_B)\n"
MIXING = """
def f(pairs, *, beta_kl, c):
    z = beta_kl * pairs.margin_B
    m = torch.sigmoid(c * z)
    return (1 - m) * torch.nn.functional.softplus(-z, threshold=1000) + m * torch.exp(-z)
"""
CENTRED = "def f(pairs, *, beta):\n    z = beta * pairs.margin_B\n    return torch.exp(-(z - z.mean() / 2) / 9)\n"


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """Writes a module of the user's and gives its name, which no other test has."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(body: str) -> str:
        name = f"own_{abs(hash(request.node.name))}_{len(list(tmp_path.iterdir()))}"
        Path(tmp_path, f"{name}.py").write_text(f"import torch\n\n{body}")
        return name

    return write


def parsed(**fields):
    return LOSS.validate_python({"name": "custom", **fields})


def batch(*margins):
    margin_B = torch.tensor(margins, dtype=torch.float64, requires_grad=True)
    length_B = torch.full(margin_B.shape, 5)
    return PairBatch(0.25 * margin_B, -0.75 * margin_B, length_B, length_B), margin_B


def test_searched_and_learnt_params_have_dotted_names():
    loss = parsed(
        function="own.losses:soft",
        params={
            "alpha": {"log_uniform": [0.1, 10.0]},
            "kind": {"choice": ["a", "b"]},
            "beta": 0.1,
            "shift": {"learnable": True, "init": {"uniform": [0.2, 0.8]}, "bounds": [0, 1]},
        },
    )
    assert set(loss.domains()) == {"params.alpha", "params.kind", "params.shift.init"}
    drawn = loss_at(loss, {"params.alpha": 0.5, "params.kind": "b", "params.shift.init": 0.25})
    assert not drawn.domains()
    assert drawn.params.given()["alpha"] == 0.5
    assert drawn.flat() == {
        "name": "custom",
        "function": "own.losses:soft",
        "params.alpha": 0.5,
        "params.kind": "b",
        "params.beta": 0.1,
        "params.shift.learnable": True,
        "params.shift.init": 0.25,
        "params.shift.learning_rate": 0.01,
        "params.shift.bounds": [0.0, 1.0],
    }
    assert LOSS.validate_json(drawn.model_dump_json()) == drawn
    assert LOSS.validate_json(loss.model_dump_json()) == loss
    assert drawn.learnt_rate() == 0.01


def test_two_losses_differ_by_their_params():
    assert parsed(function="a:f", params={"alpha": 1.0}) != parsed(function="a:f", params={"alpha": 2.0})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "required"),
        ({"function": "my_losses.soft"}, "package.module:function or path/to/file.py:function is needed"),
        ({"function": "a:f", "params": {"pairs": 1}}, "other than `pairs`"),
        ({"function": "a:f", "params": {"not a name": 1}}, "called as a Python argument"),
        ({"function": "a:f", "params": {"alpha": None}}, "but got null"),
        ({"function": "a:f", "params": {"alpha": {"unifrom": [0, 1]}}}, "did you mean uniform"),
        ({"function": "a:f", "params": {"alpha": {"learnable": True, "inti": 1}}}, 'but got "inti"'),
        ({"function": "a:f", "params": {"alpha": {"learnable": True, "init": 2.0, "bounds": [0, 1]}}}, "start inside"),
        ({"function": "a:f", "params": {n: {"learnable": True, "init": 1.0} for n in "ab"}}, "one parameter"),
        ({"function": "a:f", "file_sha256": "abc"}, "match pattern"),
    ],
)
def test_an_illegal_description_is_refused_with_the_law(fields, says):
    with pytest.raises(ValidationError, match=says):
        parsed(**fields)


def test_a_branch_is_named_after_the_function():
    assert parsed(function="own.losses:soft", sft={"rule": "brier"}).default_label() == "soft_brier"


def test_the_function_is_called_with_pairs_and_params(module):
    loss = build_loss(parsed(function=f"{module(LOGISTIC)}:f", params={"beta": 0.5}))
    pairs, margin_B = batch(-2.0, 0.0, 3.0)
    values = loss(pairs)
    assert values.tolist() == pytest.approx([math.log1p(math.exp(-0.5 * m)) for m in (-2.0, 0.0, 3.0)])
    (slope_B,) = torch.autograd.grad(values.sum(), margin_B)
    assert slope_B.tolist() == pytest.approx([-0.5 / (1 + math.exp(0.5 * m)) for m in (-2.0, 0.0, 3.0)])
    assert loss.beta_kl == 0.5
    assert not loss.batch_coupled


def test_its_geometry_is_found_from_the_function_alone(module):
    found = build_loss(parsed(function=f"{module(MIXING)}:f", params={"beta_kl": 0.05, "c": 20.0})).geometry()
    known = dlrml_geometry(20.0)
    assert found.starts == "wrong"
    assert found.bounded
    assert found.value_at_zero == pytest.approx(known.value_at_zero)
    for own, expected in ((found.trap, known.trap), (found.barrier, known.barrier)):
        assert own.z == pytest.approx(expected.z, abs=1e-9)
        assert own.value == pytest.approx(expected.value)


def test_pairs_that_depend_on_each_other_are_noticed(module):
    loss = build_loss(parsed(function=f"{module(CENTRED)}:f", params={"beta": 0.1}))
    assert loss.batch_coupled
    geometry = loss.geometry()
    assert geometry.starts == "right"
    # Alone among 255 pairs at margin 0 the mean is z / 256.
    assert loss.curve(torch.tensor([3.0], dtype=torch.float64))[0].item() == pytest.approx(
        math.exp(-(3.0 - 3.0 / 512) / 9)
    )
    assert not geometry.bounded


def test_a_learnt_param_starts_at_init_and_stays_inside_its_bounds(module):
    param = {"learnable": True, "init": 0.3, "bounds": [0.1, 0.5]}
    loss = build_loss(parsed(function=f"{module(LOGISTIC)}:f", params={"beta": param}))
    assert loss.mix.value().item() == pytest.approx(0.3)
    assert loss.mix.reported() == {"params.beta": pytest.approx(0.3)}
    assert loss.beta_kl == 0.3
    pairs, _ = batch(-4.0)
    loss(pairs).sum().backward()
    # d softplus(-b m) / db = -m sigmoid(-b m), and db / dtheta = (b - low)(high - b) / (high - low).
    expected = 4.0 / (1 + math.exp(0.3 * -4.0)) * (0.2 * 0.2 / 0.4)
    assert loss.mix.theta.grad.item() == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():
        loss.mix.theta += 100
    assert loss.mix.value().item() <= 0.5


def test_a_learnt_param_without_bounds_is_the_value_itself(module):
    loss = build_loss(parsed(function=f"{module(LOGISTIC)}:f", params={"beta": {"learnable": True, "init": 0.25}}))
    assert loss.mix.theta.item() == 0.25
    with torch.no_grad():
        loss.mix.theta.fill_(math.nan)
    assert loss.mix.reported() == {}


def test_the_file_of_the_function_is_hashed_and_held_against_it(module, tmp_path):
    name = module(LOGISTIC)
    file = tmp_path / f"{name}.py"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert load_function(f"{name}:f").sha256 == digest
    pinned = parsed(function=f"{name}:f", params={"beta": 0.1}, file_sha256=digest)
    build_loss(pinned)
    file.write_text(file.read_text() + "\n# changed\n")
    with pytest.raises(InputError, match="must be the one that the search started with"):
        build_loss(pinned)


@pytest.mark.parametrize(
    ("body", "function", "says"),
    [
        (LOGISTIC, "g", "must have a function g, but has none; functions there: f"),
        ("x = 1\n", "g", "it has no function of its own"),
        ("1 / 0\n", "f", "importing it failed: ZeroDivisionError: division by zero at .*own_.*py:3"),
        ("import no_such_thing_at_all\n", "f", "ModuleNotFoundError: .*no_such_thing_at_all.* at .*py:3"),
        ("def f(:\n", "f", "SyntaxError: .* at .*own_.*py:3"),
    ],
)
def test_a_function_that_cannot_be_imported_says_why_and_where(module, body, function, says):
    with pytest.raises(InputError, match=says):
        build_loss(parsed(function=f"{module(body)}:{function}"))


def test_a_module_that_does_not_exist_is_reported_with_the_searched_places():
    with pytest.raises(InputError, match=r"there is no module 'nowhere_to_be_found' in .* or on PYTHONPATH"):
        build_loss(parsed(function="nowhere_to_be_found.losses:f"))


def test_a_function_is_named_by_its_file_too_and_tied_to_it(tmp_path, monkeypatch):
    file = tmp_path / "kept" / "0007.py"
    file.parent.mkdir()
    file.write_text(f"import torch\n\n{LOGISTIC}")
    pinned = parsed(function=f"{file}:f", params={"beta": 0.5}).tied()
    assert pinned.file_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    pairs, _ = batch(2.0)
    assert build_loss(pinned)(pairs).item() == pytest.approx(math.log1p(math.exp(-1.0)))
    monkeypatch.chdir(tmp_path)
    assert build_loss(parsed(function="kept/0007.py:f", params={"beta": 0.5})).beta_kl == 0.5
    file.write_text(file.read_text().replace("-beta", "-2 * beta"))
    assert build_loss(parsed(function=f"{file}:f", params={"beta": 0.5}))(pairs).item() == pytest.approx(
        math.log1p(math.exp(-2.0))
    )
    with pytest.raises(InputError, match="must be the one that the search started with"):
        build_loss(pinned)
    with pytest.raises(InputError, match=r"kept/0008\.py:f: there is no such file, from .*or from the folders of"):
        build_loss(parsed(function="kept/0008.py:f"))


def test_the_folder_that_a_command_runs_in_is_searched(tmp_path, monkeypatch):
    (tmp_path / "in_this_folder.py").write_text(f"import torch\n\n{LOGISTIC}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    assert build_loss(parsed(function="in_this_folder:f", params={"beta": 0.1})).beta_kl == 0.1


def test_an_edit_in_a_notebook_is_what_is_built_and_hashed(module, tmp_path):
    name = module(LOGISTIC)
    importlib.import_module(name)  # as a notebook does, to try the function
    first = build_loss(parsed(function=f"{name}:f", params={"beta": 0.1}))
    file = tmp_path / f"{name}.py"
    file.write_text(file.read_text().replace("softplus(", "softplus(2 * "))
    second = build_loss(
        parsed(function=f"{name}:f", params={"beta": 0.1}, file_sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    )
    pairs, _ = batch(-3.0)
    assert second(pairs).item() == pytest.approx(math.log1p(math.exp(0.6)), rel=1e-6)
    assert first(pairs).item() == pytest.approx(math.log1p(math.exp(0.3)), rel=1e-6)


def test_a_function_from_another_file_than_the_one_that_is_hashed_is_refused(module):
    other = module(LOGISTIC)
    name = module(f"from {other} import f\n")
    with pytest.raises(InputError, match=rf"{name}\.py imports it from .*{other}\.py; name that module"):
        build_loss(parsed(function=f"{name}:f", params={"beta": 0.1}))
    wrapped = module(
        f"import functools\nfrom {other} import f as inner\n\n"
        "def doubling(f):\n    @functools.wraps(f)\n    def g(*a, **k):\n        return f(*a, **k)\n    return g\n\n"
        "@doubling\ndef f(pairs, *, beta):\n    return inner(pairs, beta=beta)\n"
    )
    assert build_loss(parsed(function=f"{wrapped}:f", params={"beta": 0.1})).beta_kl == 0.1
    with pytest.raises(InputError, match="must be a Python function"):
        build_loss(parsed(function="fractions:Fraction"))
