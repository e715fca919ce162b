"""The cheap questions about a proposal: what is refused, what is named as a double, and what is told of the others."""

import re

import pytest

from tune_dlrml.discovery.checks import Checker, CheckerGoneError, Limits
from tune_dlrml.losses.dpo.config import DpoLoss
from tune_dlrml.losses.lrml.config import DlrmlLoss
from tune_dlrml.losses.proposed.config import ProposedLoss

pytestmark = pytest.mark.slow
BETA = {"log_uniform": [0.02, 0.5]}
MIXED = "m = torch.sigmoid({c} * z)\nreturn (1 - m) * F.softplus(-z) + m * torch.exp(-z)"


@pytest.fixture(scope="module")
def checker():
    with Checker(Limits(seconds=20, mebibytes=512)) as started:
        yield started


def proposed(body, **scalars):
    names = "".join(f", {name}" for name in scalars)
    lines = ["z = beta * pairs.margin_B", *body.split("\n")]
    code = f"def mine(pairs, *, beta{names}):\n" + "\n".join(f"    {line}" for line in lines)
    return ProposedLoss.model_validate({"code": code, "params": {"beta": BETA, **scalars}})


@pytest.mark.parametrize(
    ("body", "double"),
    [
        ("return torch.log1p(torch.exp(-z))", "dpo"),
        (
            "x = pairs.rejected_logps_B - pairs.chosen_logps_B\n"
            "return 3 * F.softplus(2 * beta * (x + pairs.reference_margin_B))",
            "dpo",
        ),
        ("return F.relu(2 - z) / 5 + 1", "hinge"),
        ("return torch.where(z < 1, 1 - z, 0 * z)", "hinge"),
        ("return (z - 0.5) * (z - 0.5)", "ipo"),
        ("return pairs.margin_B ** 2 - pairs.margin_B / beta", "ipo"),
        (MIXED.format(c="1 / 0.05"), "discopop(tau=0.05)"),
        (
            "m = 0.5 + 0.5 * torch.tanh(z / 0.14)\nreturn torch.lerp(-F.logsigmoid(z), torch.exp(-z), m)",
            "discopop(tau=0.07)",
        ),
        ("return torch.exp(-z) - F.logsigmoid(z)", "cell(alpha=0.5)"),
        (MIXED.format(c=5), "dlrml(c=5)"),
        (MIXED.format(c=10), "dlrml(c=10)"),
        ("return F.softplus(-z) + 0.2 * z", "cdpo(label_smoothing=0.2)"),
    ],
)
def test_a_double_under_a_foreign_name_is_named(checker, body, double):
    found = checker.check(proposed(body), {})
    assert found.refusal is None
    assert double in found.double.split(" = ")
    assert found.off < 1e-3
    assert found.sentences() == [f"same as {found.double} within {max(found.off, 1e-9):.0e}"]
    assert not found.passed


def test_a_function_that_is_another_all_over_its_box_is_a_double_and_at_one_point_of_it_is_none(checker):
    box = {"w": {"uniform": [0.1, 0.9]}}
    assert checker.check(proposed("return w * torch.exp(-z) + (1 - w) * F.softplus(-z)", **box), {}).double
    assert checker.check(proposed("return F.softplus(-z) + (w - 0.5) * torch.relu(-z) ** 2", **box), {}).passed


@pytest.mark.parametrize(
    "body",
    [
        "return F.softplus(-z) + 0.05 * z ** 2",
        "return F.softplus(-z) + 0.02 * F.relu(-beta * pairs.chosen_logratio_B)",
        "m = torch.sigmoid(5 * z)\nreturn (1 - m) * F.softplus(-z) + m * F.softplus(-2 * z)",
        "return F.softplus(-z) * (1 + 0.01 * pairs.chosen_length_B / pairs.rejected_length_B)",
        "return F.softplus(-z) + 0.01 * torch.sigmoid(-pairs.reference_margin_B * beta) * z ** 2",
    ],
)
def test_what_is_near_to_a_known_loss_and_differs_is_new(checker, body):
    found = checker.check(proposed(body), {})
    assert (found.refusal, found.double) == (None, None)
    assert found.passed


def test_an_earlier_proposal_and_a_setting_of_the_search_are_doubles_by_their_names(checker):
    body = "return F.softplus(-z) + w * z ** 2"
    known = {"proposal 3": proposed(body, w={"log_uniform": [0.01, 1.0]}), "the archive's": DlrmlLoss(c=5.0)}
    again = proposed("return 2 * torch.log(1 + torch.exp(-3 * z)) + 0.9 * z * z")
    assert checker.check(again, known).double.startswith("proposal 3(w=0.05")
    assert checker.check(proposed(MIXED.format(c=5)), known).double == "the archive's"
    assert checker.check(proposed("return F.softplus(-z)"), {"first": DpoLoss()}).double == "first = dpo"


def test_what_is_found_comes_as_numbers_and_as_sentences(checker):
    found = checker.check(proposed(MIXED.format(c=20) + " + 0.001 * z ** 2"), {})
    # d/dz at 0: c/4 (1 - ln 2) - 3/4, and the trap of dLRML at c = 20 lies at z = -0.11857.
    assert found.slope == pytest.approx(5 * (1 - 0.6931471805599453) - 0.75)
    assert found.trap == pytest.approx(-0.1186, abs=2e-3)
    assert (found.bounded, found.coupled) == (False, False)
    assert any(text.startswith("starts uphill (slope +0.784 at 0)") for text in found.sentences())
    assert any("trap at margin" in text and "z = -0.11" in text for text in found.sentences())
    assert found.passed


def test_a_coupled_proposal_is_noticed_and_a_coupled_double_named(checker):
    found = checker.check(proposed("return F.softplus(-z) + 0.1 * (z - z.mean()) ** 2"), {})
    assert found.coupled and found.passed
    kto = (
        "a = beta * (pairs.chosen_logratio_B - pairs.rejected_logratio_B.mean().clamp(min=0))\n"
        "b = beta * (pairs.chosen_logratio_B.mean().clamp(min=0) - pairs.rejected_logratio_B)\n"
        "return 2 - torch.sigmoid(a) - torch.sigmoid(b)"
    )
    assert checker.check(proposed(kto), {}).double.startswith("kto")


@pytest.mark.parametrize("other", ["z", "z.mean()"])
def test_a_proposal_that_is_not_finite_at_one_end_of_a_range_alone_is_refused_also_a_coupled_one(checker, other):
    # Where w is 0, the quotient of 0 by 0 is no number.
    body = f"return F.softplus(-z) + 0.1 * w * (z - 0.5 * {other}) ** 2 / w"
    found = checker.check(proposed(body, w={"uniform": [0.0, 1.0]}), {})
    assert "must be finite within 1 nat of margin 0" in found.refusal and "w=0)" in found.refusal
    assert checker.check(proposed(body, w={"uniform": [0.5, 1.0]}), {}).passed


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return z.mean()", "one loss per pair"),
        ("return beta", "must return a tensor"),
        ("return z.detach()", "have none"),
        ("return torch.sqrt(z)", "must be finite within 1 nat of margin 0"),
        ("return torch.zeros_like(z) * z", "gradient is 0 at every margin"),
        ("a, b = z\nreturn a", "ValueError: .* at <mine>:3"),
        ("return torch.softmax(z, dim=3)", "IndexError: .* at <mine>:3"),
        ("if z > 0:\n    return z\nreturn -z", "RuntimeError: Boolean value .* at <mine>:3"),
        ("k = 3\nfor i in range(20):\n    k = k * k\nreturn k * z", "63 bits"),
        ("return z + beta.exp()", "TypeError: .* at <mine>:3"),
        ("return unset + z\nunset = 1", "UnboundLocalError: .* at <mine>:3"),
    ],
)
def test_what_cannot_be_trained_with_is_refused_with_the_reason(checker, body, says):
    found = checker.check(proposed(body), {})
    assert found.refusal is not None and not found.passed
    assert re.search(says, found.refusal)
    assert found.sentences() == [found.refusal]


def test_time_and_memory_have_limits():
    grown = "y = (z[:, None] + z[None, :]).unsqueeze(-1) + z\nreturn F.softplus(-z) + 0 * y.sum()"
    long = "for i in range(32):\n    z = z + 0.001 * torch.sort(z).values.cumsum(0)\nreturn F.softplus(-z)"
    with Checker(Limits(mebibytes=64)) as checker:
        assert "can't allocate memory" in checker.check(proposed(grown), {}).refusal
        checker.limits = Limits(seconds=1)
        assert (
            checker.check(proposed(long), {}).refusal == "takes longer than the 1 s of processor time that a check has"
        )
        assert checker.check(proposed("return F.softplus(-z)"), {}).double == "dpo"


def test_a_process_that_has_ended_is_said_and_started_again():
    with Checker() as checker:
        checker.start()
        checker._process.kill()
        checker._process.wait()
        assert checker.check(proposed("return F.softplus(-z)"), {}).double == "dpo"
        checker._process.stdin.write(b"no request\n")
        checker._process.stdin.flush()
        with pytest.raises(CheckerGoneError, match="has ended; the next check starts it again"):
            checker.check(proposed("return F.softplus(-z)"), {})
        assert checker.check(proposed("return F.softplus(-z)"), {}).double == "dpo"
