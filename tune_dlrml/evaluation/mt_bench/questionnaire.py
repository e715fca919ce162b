"""The questions for a complete trial, and the file with its answers."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tune_dlrml.config import EvaluationConfig
from tune_dlrml.evaluation.engines.registry import Deal, Live, engine_in_process, one_after_another
from tune_dlrml.evaluation.mt_bench.answering import answer, read_answers, write_answers
from tune_dlrml.evaluation.mt_bench.questions import load_questions
from tune_dlrml.evaluation.records import Answers, Question


@dataclass(frozen=True)
class Questionnaire:
    """Questions, and how they are answered. Light enough to travel to every worker.

    Attributes:
        questions: In the order of their file.
        max_new_tokens: Limit of one answer.
        batch_size: Questions that are answered at once; the answers do not depend on it.
        seed: Of the answers that are sampled.
    """

    questions: tuple[Question, ...]
    max_new_tokens: int
    batch_size: int
    seed: int

    @classmethod
    def of(cls, config: EvaluationConfig) -> "Questionnaire":
        """The questionnaire that a search's `evaluation` section describes.

        Raises:
            InputError: The questions cannot be read.
        """
        questions = load_questions(config.questions, references=config.references, limit=config.limit)
        return cls(tuple(questions), config.max_new_tokens, config.batch_size, config.seed)

    @property
    def fingerprint(self) -> str:
        """Identifies the questions and the way in which they are answered."""
        asked = [[asdict(question) for question in self.questions], self.max_new_tokens, self.seed]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]

    def path(self, folder: Path) -> Path:
        """File with the answers of the trial whose folder it is, in FastChat's format."""
        return folder / f"answers-{self.fingerprint}.jsonl"

    def answer(self, policy: Any, tokenizer: Any, *, rank: int, world: int, deal: Deal | None = None) -> list[Answers]:
        """This rank's share of the answers; all of them where the ranks `deal` the batches out."""
        model = Live("policy", policy, tokenizer, deal=deal or one_after_another)
        engine = engine_in_process(model, max_new_tokens=self.max_new_tokens, batch_size=self.batch_size)
        return answer(self.questions if deal else self.questions[rank::world], engine, seed=self.seed)

    def keep(self, folder: Path, shares: Sequence[Sequence[Answers]]) -> None:
        """Write the answers of all ranks, in the order of the questions."""
        given = {answers.question_id: answers for share in shares for answers in share}
        write_answers(self.path(folder), [given[question.id] for question in self.questions], f"trial-{folder.name}")

    def answers(self, folder: Path) -> list[Answers] | None:
        """The answers of a trial; None if it was not asked these questions in this way.

        Raises:
            InputError: The file was changed and is not a file of answers any more.
        """
        path = self.path(folder)
        return read_answers(path) if path.exists() else None
