"""What a proposer is asked: the task, the rules of its function, and what is known of the losses that were tried."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tune_dlrml.config import AnyLoss, DiscoveryConfig
from tune_dlrml.discovery.archive import ProposalRecord
from tune_dlrml.discovery.known import as_function
from tune_dlrml.discovery.scores import Score
from tune_dlrml.evaluation.records import Message
from tune_dlrml.losses.proposed.config import ProposedLoss
from tune_dlrml.losses.proposed.vocabulary import FUNCTIONS, METHODS
from tune_dlrml.metrics import METRICS

EXAMPLE = """\
def softened_hinge(pairs, *, beta, gap=1.0):
    # beta: 0.01 to 1, log
    # gap: 0.2 to 2
    z = beta * (pairs.chosen_logratio_B - pairs.rejected_logratio_B)
    return F.softplus(gap - z)
"""
"""A function as it may be proposed."""
TASK = """\
You design loss functions for preference fine-tuning of language models. A loss sees pairs of completions of one \
prompt, of which people preferred one, and is minimised by gradient descent on the policy. You write one Python \
function; it is checked, trained with, and compared with other losses by the {metric} on pairs that it was not \
trained on: {meaning}

Reply with one or two sentences on the idea, and then with one function in a code block:

{example}

Rules, each of which is checked:
- The first argument holds tensors of shape (B,): `chosen_logratio_B` and `rejected_logratio_B`, log-probability \
of the policy minus that of the reference of each completion in nats, both 0 before training; `margin_B`, their \
difference; `chosen_length_B` and `rejected_length_B`, in tokens.
- The function returns the loss of each pair, shape (B,), and nothing else. Its mean is minimised.
- The other arguments are named scalars behind `*`. A comment such as `# beta: 0.01 to 1, log` says where one is \
searched; without it a default is kept. Have a `beta` that scales the margin.
- At the start, where both log-ratios are 0, the loss must fall as the margin grows. A point below 0 from where \
descent makes the margin fall further is a trap: pairs end there.
- Values and slopes must be finite for margins of hundreds of nats on either side, in bfloat16 too.
- Only arithmetic, comparisons, assignments to new names, `if`, and these: {functions}; methods of tensors: \
{methods}. No import, no other attribute, no in-place edit, no randomness.
- The same function under another name, or scaled, is sent back.
"""


REQUEST = """\
Propose another loss that may be better, and that differs from all of these: one or two sentences, and then one \
function `def name(pairs, *, beta)` in a code block. It returns a tensor of shape (B,), the loss of each pair, not its \
mean."""


class Question(NamedTuple):
    """What a proposer is sent.

    Attributes:
        messages: The prompt.
        parents: Labels of the losses that it shows with their code.
        refusals: Numbers of the refused proposals that it shows.
    """

    messages: list[Message]
    parents: list[str]
    refusals: list[int]


def question(
    config: DiscoveryConfig,
    metric: str,
    losses: Mapping[str, AnyLoss],
    scores: Mapping[str, Score],
    records: Sequence[ProposalRecord],
) -> Question:
    """The prompt for the next proposal.

    Args:
        config: How many losses are shown.
        metric: Objective of the search.
        losses: Those that are trained, by label: the file's and the accepted ones.
        scores: What was measured, by label, the best first.
        records: The proposals so far.
    """
    system = TASK.format(
        metric=METRICS[metric].words,
        meaning=METRICS[metric].meaning,
        example=_fenced(EXAMPLE),
        functions=", ".join(f"`{name}`" for name in sorted(FUNCTIONS)),
        methods=", ".join(f"`{name}`" for name in sorted(METHODS)),
    )
    best = [label for label in scores if label in losses and scores[label].value is not None][: config.context.best]
    replied = [record for record in records if record.reply is not None]
    recent = replied[max(len(replied) - config.context.recent, 0) :]
    shapes = {record.label: record.found.get("shape", ()) for record in records if record.label}
    said = {label: _said(score.sentence(metric), shapes.get(label, ())) for label, score in scores.items()}
    parts = []
    if "baseline" in scores:
        parts.append(f"Plain DPO, -logsigmoid(beta * margin), trial 0: {said['baseline']}.")
    if best:
        shown = "\n\n".join(f"{label}: {said[label]}\n{_text(label, losses[label])}" for label in best)
        parts.append(f"The best losses so far, the best first:\n\n{shown}")
    newest = list(dict.fromkeys(_newest(record, said) for record in recent if record.label not in best))
    if newest:
        parts.append("The newest proposals:\n\n" + "\n\n".join(newest))
    parts.append(REQUEST)
    parents = [*best, *(record.label for record in recent if record.label and record.label not in best)]
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "\n\n".join(parts)}]
    return Question(messages, parents, [record.number for record in recent if record.stage != "accepted"])


def _text(label: str, loss: AnyLoss) -> str:
    code = loss.code if isinstance(loss, ProposedLoss) else as_function(label, loss)
    if code is not None:
        return _fenced(code)
    return f"{loss.name}: {(type(loss).__doc__ or '').strip().splitlines()[0]}"


def _said(measured: str, shape: Sequence[str]) -> str:
    """What training measured, and what the checks warned of."""
    return f"{measured}. Its shape: {'; '.join(shape)}" if shape else measured


def _newest(record: ProposalRecord, said: Mapping[str, str]) -> str:
    if record.stage == "accepted":
        untrained = _said("not trained yet", record.found.get("shape", ()))
        return f"{record.label}: {said.get(record.label, untrained)}\n{_fenced(record.code)}"
    # A reply without a function is not repeated: small models take it for the form that is asked for.
    return f"refused, {record.reason}\n{_fenced(record.code)}" if record.code else f"refused, {record.reason}"


def _fenced(code: str) -> str:
    return f"```python\n{code.strip()}\n```"
