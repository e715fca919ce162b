"""A proposal is read from what a language model answers, however it is dressed."""

import pytest

from tune_dlrml.discovery.reply import read_reply
from tune_dlrml.domains import Range
from tune_dlrml.errors import InputError

CODE = "def soft(pairs, *, beta):\n    return F.softplus(-beta * pairs.margin_B)"
RANGED = f"# beta: 0.01 to 1, log\n{CODE}"
BETA = Range(kind="log_uniform", low=0.01, high=1.0)


@pytest.mark.parametrize(
    "reply",
    [
        RANGED,
        f"```python\n{RANGED}\n```",
        f"```\n{RANGED}\n```",
        f"~~~py\n{RANGED}\n~~~",
        f"   ```Python\n{RANGED}\n   ```",
        f"```python\n{RANGED}",
        f"<think>def no(pairs):\n    pass\n</think>\n```python\n{RANGED}\n```",
        f"```python\nimport math\nimport torch\nimport torch.nn.functional as F\n\n{RANGED}\n```",
        f"```python\nfrom torch.nn import functional as F\n{RANGED}\n```\nCall it:\n```\nsoft(pairs, beta=1)\n```",
        f"```python\n{RANGED}\n```\nAgain:\n```python\n{RANGED}\n```",
        f"```python\n{RANGED}\n```".replace("\n", "\r\n"),
        f"```python\n{RANGED}\n```".replace("    ", "\t"),
        f"```python\n{RANGED}\n```".replace("    ", "\u00a0\u00a0\u00a0\u00a0"),
        f"```python\n{RANGED}\n```".replace("-beta", "\u2212beta").replace("def", "\ufeffdef"),
    ],
)
def test_a_function_is_found_however_it_is_dressed(reply):
    found = read_reply(reply, {})
    assert found.name == "soft"
    assert found.code == RANGED
    assert found.params.given() == {"beta": BETA}
    assert found.loss.default_label() == "soft"


def test_the_prose_around_is_the_reasoning_else_the_docstring():
    assert read_reply(f"It is\nsmooth.\n```\n{RANGED}\n```\nDone.", {}).reasoning == "It is smooth. Done."
    assert read_reply(f"It is smooth.\n\n{RANGED}\n\nDone.", {}).reasoning == "It is smooth. Done."
    assert read_reply(RANGED.replace("return", '"""As DPO."""\n    return'), {}).reasoning == "As DPO."


def test_typographic_quotes_are_read_in_code_and_kept_in_prose():
    found = read_reply(
        f"A \u201csoft\u201d one.\n```\n{RANGED}\n```".replace("return", "\u201dd\u201d\n    return"), {}
    )
    assert found.reasoning == "A \u201csoft\u201d one."
    assert '"d"' in found.code


def test_a_scalar_is_searched_where_the_reply_says_else_where_its_default_is_else_where_it_is_known():
    head = "def f(pairs, *, beta, gamma, k, tau=0.05, c: float = -1, heat):"
    inside = "    # beta: 1e-2 to 1, log\n    return -beta * pairs.margin_B"
    reply = f"# gamma: 0.5 to 2\n# k: 1 to 4, whole\n{head}\n{inside}"
    known = {"beta": Range(kind="uniform", low=0, high=9), "heat": Range(kind="uniform", low=3, high=4)}
    assert read_reply(reply, known).params.given() == {
        "beta": BETA,
        "gamma": Range(kind="uniform", low=0.5, high=2.0),
        "k": Range(kind="int_uniform", low=1, high=4),
        "tau": 0.05,
        "c": -1,
        "heat": known["heat"],
    }


@pytest.mark.parametrize("said", ["beta: -1 to 2", "- `beta`: [-1, 2]", "beta = -1 .. 2", "Beta:-1 - 2"])
def test_a_range_is_read_in_the_forms_that_people_write(said):
    assert read_reply(f"# {said}\n{CODE}", {}).params.given() == {"beta": Range(kind="uniform", low=-1.0, high=2.0)}


def test_two_assignments_with_operators_in_one_line_are_written_out():
    code = "def f(pairs, *, beta=0.1):\n    z = beta * pairs.margin_B\n    z += 1; z *= 2\n    return z"
    assert "    z = z + (1); z = z * (2)\n" in read_reply(code, {}).code


@pytest.mark.parametrize(
    "long", ["# beta" + " " * 90_000, "`" * 90_000, "<a" * 45_000, "def " * 20_000, "# beta: 1" * 9_000]
)
def test_a_long_reply_is_read_in_no_time(long):
    # Whoever writes a pattern that backtracks without end sees this test run for minutes.
    with pytest.raises(InputError):
        read_reply(f"{long}\n```\n{CODE}", {})


def test_a_docstring_may_say_the_range():
    documented = "Mixed.\n\n    Args:\n        c: 1 to 9, log"
    code = f'def f(pairs, *, beta, c):\n    """{documented}\n    """\n    return pairs.margin_B'
    assert read_reply(f"# beta: 0.1 to 1\n{code}", {}).params.given()["c"] == Range(
        kind="log_uniform", low=1.0, high=9.0
    )


def test_an_assignment_with_an_operator_is_written_out():
    body = "z = beta * pairs.margin_B\n    z *= 2 if beta > 1 else (\n        3)\n    z -= 1\n    return z"
    found = read_reply(f"def f(pairs, *, beta=0.1):\n    {body}", {})
    lines = ["z = z * (2 if beta > 1 else (", "        3))", "    z = z - (1)", "    return z"]
    assert found.code.endswith("\n".join(lines))


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ("", "no answer behind its thoughts"),
        ("<think>I wonder", "no answer behind its thoughts"),
        ("I would try a smoother hinge.", "the reply has no function"),
        ("```python\nprint('hi')\n```", "the reply has no function"),
        (f"```\n{RANGED}\n```\n```\n{RANGED.replace('soft', 'hard')}\n```", "the reply has 2: soft, hard"),
        (f"{RANGED}\n\n\n{RANGED.replace('soft', 'hard')}", "the reply has 2: soft, hard"),
        (f"```\n{RANGED}\n\n{CODE}\n```", "line 5: one function alone"),
        ("```\ndef f(pairs, *, beta):\n    return torch.exp(", r"line 2: not Python: .* answer more briefly"),
        ("```\ndef f(pairs, *, beta):\n```", "line 1: not Python: expected an indented block"),
        (CODE, "line 1: beta has no range; write a line `# beta: 0.01 to 1, log` above the function"),
        (RANGED.replace("0.01 to 1,", "1 to 0.01,"), "the range of beta is low to high"),
        (RANGED.replace("0.01", "0"), "above 0 for a log one"),
        (RANGED.replace("to 1,", "to 1e999,"), "the range of beta is low to high"),
        (RANGED.replace("log", "whole"), "a range in whole numbers has whole ends, but that of beta is 0.01 to 1"),
        (
            RANGED.replace("beta):", "beta, pairs=1):").replace("f(pairs", "f(p"),
            "duplicate argument|another name|other",
        ),
        (RANGED.replace("beta):", "beta, tau=1e999):"), "line 2: a default is a number of at most"),
        ("def f(pairs, *, tau=1):\n    return pairs.margin_B", "the function takes beta"),
        (f"```\nimport os\n{RANGED}\n```", "line 1: no import"),
        (f"```\nimport torch as F\n{RANGED}\n```", "line 1: no import"),
        ("x" * 100_001, "at most 100000 characters"),
    ],
)
def test_a_reply_without_exactly_one_function_is_refused_with_the_reason(reply, says):
    with pytest.raises(InputError, match=says):
        read_reply(reply, {})
