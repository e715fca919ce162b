"""How often a judge prefers a model's answers to those of a data set, as the DPO paper measures it.

Its summaries and dialogues (arXiv 2305.18290, section 6) are shown in one order, at random; here every prompt is judged
in both, so that a judge that prefers a position decides nothing.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tune_dlrml.benches.alpaca_eval import only_judge
from tune_dlrml.benches.answers import KeptTexts, fingerprint
from tune_dlrml.benches.subject import Loaded, Subject
from tune_dlrml.config import EvaluationConfig, RowsConfig
from tune_dlrml.data import load_section
from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.engines.registry import ENGINES, IN_PROCESS, engine_in_process, make_engine
from tune_dlrml.evaluation.judges.prompts import PromptName, load_judge_prompts
from tune_dlrml.evaluation.judges.replies import CachedJudge, ReplyCache, judge_all
from tune_dlrml.evaluation.judges.resigning import Resigning
from tune_dlrml.evaluation.mt_bench.answering import read_answers, write_answers
from tune_dlrml.evaluation.mt_bench.scores import pair_inquiries, pair_score
from tune_dlrml.evaluation.records import Answers, Chat, Judgement, Question
from tune_dlrml.system.files import replace_file

NEEDED = (PromptName("pair", guided=False, turn=1),)


@dataclass(frozen=True)
class Rivals:
    """Prompts with the answers that a model's are compared with: the preferred ones of a data set of pairs.

    Attributes:
        source: Reference of the data set.
        prompts: Texts that are continued as they stand, or chats.
        answers: Of the data set, by the same places.
    """

    source: str
    prompts: Sequence[str | Chat]
    answers: Sequence[str]

    @classmethod
    def of(cls, subject: Subject, pairs: str | None, limit: int | None) -> "Rivals":
        """Those of a data set, or else of the held-out set of a trial's search: its test set where there is one.

        Raises:
            InputError: No data set is given for a model that is no trial, or it cannot be read.
        """
        config = subject.config if isinstance(subject, Loaded) else None
        held_out = None if config is None else config.dataset
        if pairs is None and held_out is None:
            raise InputError(f"win-rate needs the answers that {subject.name} is compared with: give --pairs DATASET")
        source = pairs or (held_out.test or held_out.eval if held_out else "")
        section, _ = load_section(source, "pairs", held_out or RowsConfig())
        chosen = section.pairs[:limit]
        return cls(source, [pair["prompt"] for pair in chosen], [as_text(pair["chosen"]) for pair in chosen])

    @property
    def questions(self) -> list[Question]:
        """The prompts as a judge reads them."""
        return [Question(at, "", (as_text(prompt),)) for at, prompt in enumerate(self.prompts)]


def as_text(said: str | Chat) -> str:
    """A text as a judge reads it: of several messages each with its role."""
    if isinstance(said, str):
        return said.strip()
    if len(said) == 1:
        return said[0]["content"].strip()
    return "\n\n".join(f"{message['role']}: {message['content'].strip()}" for message in said)


def win_rate(
    subject: Subject,
    rivals: Rivals,
    config: EvaluationConfig,
    *,
    temperature: float,
    replies: Path,
    key: str | None,
    out: Path,
    on_judgement: Callable[[Judgement], None],
) -> dict[str, Any]:
    """Have a model answer the prompts, and a judge say whose answer is better; both are left in a folder.

    Args:
        subject: Who answers.
        rivals: The prompts, and the other answers.
        config: The judge, its prompt and limits, and how long an answer may be.
        temperature: Divides the logits; 0 takes the most probable token.
        replies: File that keeps what judges say.
        key: For their endpoint.
        out: The folder.
        on_judgement: Told of every judgement.

    Raises:
        InputError: The judge, its prompt or the engine is at fault.
        JudgeEndedError: The judge, or the model's endpoint, ended early; the same command resumes.
    """
    prompts = load_judge_prompts(config.judge_prompts, needed=NEEDED)
    with closing(only_judge("win-rate", config, key)) as judge:
        out.mkdir(parents=True, exist_ok=True)
        ours, unanswered = _answers(subject, rivals, config, temperature, out)
        theirs = [Answers(at, (text,)) for at, text in enumerate(rivals.answers)]
        matches = pair_inquiries(rivals.questions, ours, theirs, prompts)
        asked = Resigning(judge)
        said = judge_all(
            [inquiry for match in matches for inquiry in match.inquiries],
            CachedJudge(asked, ReplyCache(replies)),
            concurrency=config.limits.concurrency,
            on_judgement=on_judgement,
        )
    replace_file(out / "judgements.jsonl", "".join(json.dumps(each.as_json()) + "\n" for each in said))
    score = pair_score(matches, said, judge.name, seed=config.seed)
    if score.missing is not None:
        score = replace(score, missing=asked.given_up or score.missing)
    return {
        "bench": "win-rate",
        "model": subject.name,
        "pairs": rivals.source,
        "judge_prompts": config.judge_prompts,
        "prompts": len(matches),
        **score.as_json(),
        "unanswered": unanswered,
        "calls": sum(each.calls for each in said),
        "cached": sum(each.calls == 0 for each in said),
    }


def _answers(
    subject: Subject, rivals: Rivals, config: EvaluationConfig, temperature: float, out: Path
) -> tuple[list[Answers], int]:
    """The model's answers, made unless the folder has them, and how many prompts got none."""
    if any(isinstance(prompt, str) for prompt in rivals.prompts) and subject.engine != IN_PROCESS:
        raise InputError(
            f"{rivals.source}: prompts that are texts are continued as they stand, which the engine {IN_PROCESS} does "
            f"alone, but got {subject.engine}; give messages, or another --engine"
        )
    how = [config.max_new_tokens, temperature, config.seed]
    made_from = fingerprint(subject.identity(), list(rivals.prompts), how)
    path = out / f"answers-{made_from}.jsonl"
    if path.exists() and not ENGINES[subject.engine].remote:
        return read_answers(path), 0
    texts, unanswered = _completed(subject, rivals, config, temperature, out / f"replies-{made_from}.jsonl")
    answers = [Answers(at, (text.strip(),)) for at, text in enumerate(texts)]
    write_answers(path, answers, subject.name)
    return answers, unanswered


def _completed(
    subject: Subject, rivals: Rivals, config: EvaluationConfig, temperature: float, kept: Path
) -> tuple[list[str], int]:
    size = {"max_new_tokens": config.max_new_tokens, "batch_size": config.batch_size}
    chats = [prompt for prompt in rivals.prompts if not isinstance(prompt, str)]
    if len(chats) < len(rivals.prompts):
        sampling = engine_in_process(subject.live(), **size)
        sampled = sampling.sample(rivals.prompts, temperature=temperature, seed=config.seed)
        return [each.text for each in sampled], 0
    with closing(make_engine(subject.engine, subject, kept=KeptTexts(kept), **size)) as engine:
        texts = engine.generate(chats, temperature=temperature, seed=config.seed)
        return texts, engine.unanswered
