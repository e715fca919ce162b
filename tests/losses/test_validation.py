"""What a user's loss is checked for before a search: what ends it, and what is told."""

from pathlib import Path

import pytest

from tune_dlrml.errors import InputError
from tune_dlrml.losses.custom.config import CustomLoss
from tune_dlrml.losses.custom.validation import validate_written

HEAD = "import torch\nfrom torch.nn.functional import softplus\n\n\n"


@pytest.fixture
def examined(tmp_path, monkeypatch, request):
    """Writes a function of the user's, `f`, and says what is found of it."""
    monkeypatch.syspath_prepend(tmp_path)

    def examine(text: str, **params: object):
        name = f"seen_{abs(hash(request.node.name))}"
        Path(tmp_path, f"{name}.py").write_text(HEAD + text)
        return validate_written(CustomLoss(function=f"{name}:f", params=params))

    return examine


def one_line(expression: str) -> str:
    return f"def f(pairs, *, beta=0.1):\n    m = pairs.margin_B\n    return {expression}\n"


def warnings(observations) -> dict[str, str]:
    return {each.check: each.text for each in observations if each.level == "warning"}


def test_dpo_is_sound_in_every_respect(examined):
    found = examined(one_line("softplus(-beta * m)"), beta=0.1)
    assert warnings(found) == {}
    assert {each.check for each in found} == {"finite", "gradient", "pairs", "start", "monotone", "bounded"}


@pytest.mark.parametrize(
    ("text", "params", "says"),
    [
        (one_line("softplus(-beta * m)"), {"betta": 0.1}, r"f\(pairs, \*, beta=0.1\) does not go with params betta"),
        ("def f(pairs, *, beta, alpha):\n    return 0\n", {"beta": 0.1}, "missing a required argument: 'alpha'"),
        (one_line("softplus(-beta * m).mean()"), {}, r"shape \(1,\) for 1 pairs, but returned shape \(\); leave the"),
        (one_line("softplus(-beta * m)[:1]"), {}, r"shape \(2,\) for 2 pairs, but returned shape \(1,\)"),
        (one_line("[1.0]"), {}, "must return a tensor .* returned a list"),
        ("def f(pairs):\n    pass\n", {}, r"returned nothing \(is there a return\?\)"),
        (one_line("torch.tensor([softplus(-beta * x).item() for x in m])"), {}, "cuts it off"),
        (one_line("softplus(-beta * m.detach())"), {}, "by a gradient, but have none"),
        (one_line("m * 0 + 1"), {}, "gradient is 0 at every margin"),
        (one_line("(m > 0).long()"), {}, "floating-point"),
        (one_line("1 / m"), {}, "finite within 1 nat of margin 0.* not at margin -?0"),
        (one_line("torch.sqrt(m * m)"), {}, "in float32 they are not at margin -?0"),
        (one_line("softplus(-beta * pairs.chosen_logratio_B.mul_(2))"), {}, "changes chosen_logratio_B in place"),
        (one_line("softplus(-beta * m) / 0 if len(m) > 2 else {}[0]"), {}, r"raised KeyError: 0 at .*seen_.*py:7"),
        (
            "def f(pairs, *, a):\n    return softplus(-pairs.margin_B)\n",
            {"a": {"learnable": True, "init": 1.0}},
            "learnable parameter a must have a finite gradient, but has none",
        ),
    ],
)
def test_what_would_end_every_trial_is_refused(examined, text, params, says):
    with pytest.raises(InputError, match=says):
        examined(text, **params)


@pytest.mark.parametrize(
    ("expression", "check", "says"),
    [
        ("torch.exp(-beta * m)", "bounded", "without bound as the margin falls"),
        ("torch.exp(-beta * m)", "finite", "not finite from -1000 nats down"),
        ("softplus(beta * m)", "start", "starts uphill"),
        ("(beta * m - 1.2) ** 2", "monotone", "rises again above a margin of about 17.8 nats"),
        ("softplus(-beta * m) * softplus(-beta * m).detach()", "gradient", "part of it is detached"),
        ("softplus(-beta * m) + 0.1 * beta * (m - m.mean())", "pairs", "depends on the other pairs"),
        ("softplus(-beta * m) * (1 + 0.01 * torch.rand_like(m))", "repeatable", "two calls"),
        ("softplus(-beta * m.double())", "precision", "come back in torch.float64"),
    ],
)
def test_what_a_person_should_know_is_reported(examined, expression, check, says):
    import re

    assert re.search(says, warnings(examined(one_line(expression), beta=0.1))[check])


def test_a_trap_is_reported_with_its_margins(examined):
    found = warnings(
        examined(
            one_line(
                "(1 - torch.sigmoid(20 * beta * m)) * softplus(-beta * m) + torch.exp("
                "torch.nn.functional.logsigmoid(20 * beta * m) - beta * m)"
            ),
            beta=0.05,
        )
    )
    # DiscoPOP at beta 0.05: trap at -2.37 nats, barrier at +1.44.
    assert "-2.37 nats" in found["monotone"]
    assert "+1.44" in found["monotone"]
    assert "uphill" in found["start"]


def test_the_order_of_pairs_may_matter_too(examined):
    found = examined(one_line("softplus(-beta * m) + 0.01 * m * torch.arange(len(m))"), beta=0.1)
    assert any("order of the pairs" in each.text for each in found)
