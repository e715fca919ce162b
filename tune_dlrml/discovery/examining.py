"""From a reply to a loss that may be trained, or to where and why it is refused: the cheapest question first."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from tune_dlrml.config import AnyLoss, SearchConfig
from tune_dlrml.config.discovery import SCALARS
from tune_dlrml.discovery.archive import GEOMETRY, Stage
from tune_dlrml.discovery.checks import Checker, CheckerGoneError, Findings, Limits
from tune_dlrml.discovery.reply import read_reply
from tune_dlrml.errors import InputError
from tune_dlrml.losses.proposed.config import ProposedLoss


@dataclass(frozen=True)
class Examined:
    """What was found out about a reply without training.

    Attributes:
        stage: `accepted`, or the one that refused it.
        reason: Why.
        name: Of the function.
        reasoning: The prose around it.
        loss: Its scalars hold values and domains; None where there is no function.
        found: What the checks measured.
    """

    stage: Stage
    reason: str = ""
    name: str = ""
    reasoning: str = ""
    loss: ProposedLoss | None = None
    found: Mapping[str, Any] = field(default_factory=dict)


class Examiner:
    """Examines replies, in a process of its own; a context manager that ends it.

    Args:
        config: A search with `discovery`.
    """

    def __init__(self, config: SearchConfig) -> None:
        assert config.discovery is not None
        self._known = {**SCALARS, **config.space.scalars}
        self._checker = Checker(Limits(seconds=config.discovery.limits.seconds_per_check))

    def __enter__(self) -> Self:
        self._checker.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._checker.close()

    def examine(self, reply: str, losses: Mapping[str, AnyLoss]) -> Examined:
        """How far a reply comes.

        Args:
            reply: As it came.
            losses: Those that are trained, by label.
        """
        try:
            proposal = read_reply(reply, self._known)
        except InputError as error:
            return Examined("syntax", str(error))
        try:
            findings = self._checker.check(proposal.loss, losses)
        except CheckerGoneError as error:
            findings = Findings(refusal=str(error))
        stage: Stage = "accepted"
        if findings.double is not None:
            stage = "novelty"
        elif findings.refusal is not None or (findings.slope or 0.0) > 0:
            stage = "checks"
        said = findings.sentences()
        return Examined(
            stage,
            "" if stage == "accepted" else "; ".join(said),
            proposal.name,
            proposal.reasoning,
            proposal.loss,
            _measured(findings) | {"shape": said},
        )


def _measured(findings: Findings) -> dict[str, Any]:
    return {name: getattr(findings, name) for name in (*GEOMETRY, "processor_s")}
