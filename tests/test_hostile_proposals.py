"""What a language model must not be able to do through a loss that it writes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_proposals import HOSTILE
from pydantic import ValidationError

from tune_dlrml.discovery.reply import read_reply
from tune_dlrml.errors import InputError
from tune_dlrml.losses.proposed.config import ProposedLoss

WATCHED = """
import json, os, sys
from hostile_proposals import HOSTILE
from pydantic import ValidationError
from tune_dlrml.discovery.reply import read_reply
from tune_dlrml.errors import InputError
from tune_dlrml.losses.proposed import compiled
from tune_dlrml.losses.proposed.config import ProposedLoss

try:
    read_reply("", {})
except InputError:
    pass
events, passed = [], []
PYTHONS_OWN = "open ('<unknown>', 'rb', 0)"  # where the line of a syntax error is looked for

class Environment(dict):
    def __getitem__(self, name):
        events.append(f"environment {name}")
    get = __contains__ = __getitem__

def watch(event, arguments):
    if event not in ("compile", "sys._getframe", "builtins.id", "object.__getattr__"):
        events.append(f"{event} {arguments!r}"[:200])

os.environ = Environment()
sys.addaudithook(watch)
for what, (code, _) in HOSTILE.items():
    for attempt in (lambda: read_reply(f"```python\\n{code}\\n```", {}),
                    lambda: ProposedLoss(code=code, params={"beta": 0.1}), lambda: compiled.compiled(code)):
        try:
            attempt()
        except (InputError, ValidationError):
            continue
        passed.append(what)
found = [each for each in events if each != PYTHONS_OWN]
sys.stdout.write(json.dumps([found, passed]))
"""
PROSE = ("class above", "statement beside it", "constant beside it")
"""What is dropped as prose around a function that has no fence."""


def test_there_are_enough_of_them():
    assert len(HOSTILE) >= 60


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_or_broken_proposal_is_refused_with_line_and_reason(what):
    code, says = HOSTILE[what]
    replies = [f"Try this.\n\n```python\n{code}\n```\n"] + ([] if what in PROSE else [code])
    for reply in replies:
        with pytest.raises(InputError) as refused:
            read_reply(reply, {})
        assert re.search(says, str(refused.value)), str(refused.value)
    with pytest.raises(ValidationError, match=r"line \d+: "):
        ProposedLoss.model_validate({"code": code, "params": {"beta": 0.1}})


def test_not_one_of_them_does_anything(tmp_path):
    (tmp_path / "secret").write_text("kept")
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    program = f"import sys; sys.path[:0] = {paths!r}\n{WATCHED}"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], []]
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


GOOD = {
    "dpo": "def dpo_again(pairs, *, beta):\n    return -F.logsigmoid(beta * pairs.margin_B)",
    "hints and a docstring": '''def hinted(pairs: "PairBatch", *, beta: float, gamma: float = 0.5) -> torch.Tensor:
    r"""Focal: $(1 - \\sigma)^\\gamma$.

    Args:
        beta: 0.01 to 1, log
    """
    z: torch.Tensor = beta * pairs.margin_B  # nats
    weight = (1 - torch.sigmoid(z)).clamp(min=1e-6) ** gamma
    return weight * torch.nn.functional.softplus(-z)''',
    "where and masks": """def masked(pairs, *, beta):
    z = beta * (pairs.chosen_logratio_B - pairs.rejected_logratio_B)
    wrong = (z < 0).to(z.dtype)
    easy = (z >= 0) & (z < 1)
    other = wrong * torch.exp(-z.clamp(min=-5.0)) + (1 - wrong) * 0.1 * torch.exp(-z)
    return torch.where(easy, F.softplus(-z), other)""",
    "statistics of the batch": """def adaptive(pairs, *, beta, tau=0.1):
    z = beta * pairs.margin_B
    centre, spread = z.mean().detach(), z.std(unbiased=False).detach()
    m = torch.sigmoid((z - centre) / (spread + tau))
    return (1.0 - m) * F.softplus(-z) + m * torch.exp(-torch.abs(z))""",
    "both completions": """def pointwise(pairs, *, beta):
    chosen, rejected = beta * pairs.chosen_logratio_B, beta * pairs.rejected_logratio_B
    both = torch.stack([-chosen, rejected], dim=0)
    return torch.logsumexp(both, dim=0) + 0.5 * F.relu(1 - chosen) ** 2""",
    "lengths": """def shorter(pairs, *, beta, alpha=0.01):
    longer = pairs.chosen_length_B.float() - pairs.rejected_length_B.float()
    return F.softplus(-(beta * pairs.margin_B - alpha * torch.sign(longer) * torch.log1p(longer.abs())))""",
    "a loop and a branch": """def series(pairs, *, beta, order=1.0):
    z = torch.tanh(beta * pairs.margin_B / 2)
    total = torch.zeros_like(z)
    for k in range(1, 6, 2):
        total = total - z ** k / k
    if order > 0.5:
        total = total + math.log(2.0) * torch.ones_like(z)
    else:
        total = total * 2
    return total if order > 0 else total - torch.tensor(1.0, dtype=z.dtype, device=z.device)""",
    "policy's own": """def margin_per_token(pairs, *, beta):
    own = pairs.chosen_logps_B / pairs.chosen_length_B - pairs.rejected_logps_B / pairs.rejected_length_B
    return F.softplus(-beta * pairs.margin_B) + 0.1 * F.softplus(-own)""",
    "sorted": """def ranked(pairs, *, beta):
    z = beta * pairs.margin_B
    hardest = torch.sort(z, descending=False).values[0].detach()
    return F.softplus(-(z - 0.1 * hardest)) * (1 + 0 * z.max(dim=0)[0])""",
    "infinity": """def guarded(pairs, *, beta):
    z = torch.nan_to_num(beta * pairs.margin_B, nan=0.0)
    return torch.minimum(F.softplus(-z), torch.full_like(z, float("inf")))""",
}


@pytest.mark.parametrize("what", GOOD)
def test_a_loss_as_language_models_write_it_is_read_and_computes(what):
    torch = pytest.importorskip("torch")
    from tune_dlrml.losses.custom.validation import pairs_of
    from tune_dlrml.losses.registry import build_loss

    proposal = read_reply(f"I think so.\n```python\n# beta: 0.1 to 0.1001\n{GOOD[what]}\n```", {})
    loss = ProposedLoss.model_validate({"code": proposal.code, "params": {"beta": 0.1}})
    pairs = pairs_of([-1.0, 0.0, 2.0], torch.float64, gradient=True)
    values_B = build_loss(loss)(pairs)
    assert values_B.shape == (3,) and values_B.isfinite().all() and values_B.requires_grad
