"""Prompts of judges in FastChat's `judge_prompts.jsonl` format, filled in as FastChat does."""

import string
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tune_dlrml import builtin
from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.json_lines import Filled, Line, Text, read_lines
from tune_dlrml.evaluation.records import Answers, Message, Question

BUILTIN = "builtin:mt-bench"
Kind = Literal["rating", "pair"]

STEMS: Mapping[Kind, tuple[str, ...]] = {"rating": ("answer",), "pair": ("answer_a", "answer_b")}
"""Placeholders of the answers in turn 1; those in turn 2 are `answer_1` and `answer_2`, and so on."""
OUTPUT: Mapping[Kind, str] = {"rating": "[[rating]]", "pair": "[[A]]"}
_FIRST_TURN: Mapping[tuple[Kind, bool], str] = {
    ("rating", False): "single-v1",
    ("rating", True): "single-math-v1",
    ("pair", False): "pair-v2",
    ("pair", True): "pair-math-v1",
}


@dataclass(frozen=True)
class PromptName:
    """Which prompt a judge gets: for a rating or a pair, with right answers or without, for turn 1 or 2."""

    kind: Kind
    guided: bool
    turn: int

    def __str__(self) -> str:
        """FastChat's name of it."""
        return _FIRST_TURN[self.kind, self.guided] + ("-multi-turn" if self.turn > 1 else "")

    @property
    def answers(self) -> set[str]:
        """Placeholders of the answers that are judged."""
        return {stem if self.turn == 1 else f"{stem}_{self.turn}" for stem in STEMS[self.kind]}

    @property
    def placeholders(self) -> set[str]:
        """All placeholders that can be filled in."""
        stems, turns = ("question", *STEMS[self.kind]), range(1, self.turn + 1)
        texts = set(stems) if self.turn == 1 else {f"{stem}_{turn}" for stem in stems for turn in turns}
        return texts | ({f"ref_answer_{turn}" for turn in turns} if self.guided else set())


SINGLE = tuple(PromptName("rating", guided, turn) for turn in (1, 2) for guided in (False, True))
PAIR = tuple(PromptName("pair", guided, turn) for turn in (1, 2) for guided in (False, True))


@dataclass(frozen=True)
class JudgePrompt:
    """One line of the file: what goes into the system message, and the template of the user message."""

    name: PromptName
    system: str
    template: str

    def messages(self, question: Question, *answers: Answers) -> tuple[Message, ...]:
        """The prompt filled in: with one model's answers, or with those of assistant A and of assistant B.

        `str.format` on the template alone: braces in a question or an answer stay as they are. An empty system
        prompt is no message, as in FastChat's messages to chat models.
        """
        user = {"role": "user", "content": self.template.format(**self.texts(question, *answers))}
        return ({"role": "system", "content": self.system}, user) if self.system else (user,)

    def texts(self, question: Question, *answers: Answers) -> dict[str, str]:
        """The text for each placeholder."""
        turn = self.name.turn
        shown = [("question", question.turns), *zip(STEMS[self.name.kind], (a.turns for a in answers), strict=True)]
        if turn == 1:
            texts = {stem: turns[0] for stem, turns in shown}
        else:
            texts = {f"{stem}_{at}": turns[at - 1] for stem, turns in shown for at in range(1, turn + 1)}
        if self.name.guided:
            texts |= {f"ref_answer_{at}": question.reference[at - 1] for at in range(1, turn + 1)}
        return texts


JudgePrompts = Mapping[PromptName, JudgePrompt]


class _PromptLine(Line):
    name: Filled
    system_prompt: Text
    prompt_template: Filled
    output_format: str | None = None


def load_judge_prompts(source: str = BUILTIN, *, needed: Collection[PromptName] = SINGLE) -> JudgePrompts:
    """The needed prompts of a file, which may have others as well.

    Args:
        source: `builtin:` and the name of a task, or a file in FastChat's format.
        needed: `SINGLE` for ratings, `SINGLE + PAIR` where answers are compared as well.

    Raises:
        InputError: The file cannot be read, a needed prompt is missing or given twice, or its template has a
            placeholder that cannot be filled in or lacks that of an answer that is to be judged.
    """
    task = source.removeprefix(builtin.PREFIX)
    path = Path(source).expanduser() if task == source else builtin.judge_prompts(task)
    names = {str(name): name for name in needed}
    prompts: dict[PromptName, JudgePrompt] = {}
    for place, line in read_lines(path, _PromptLine):
        name = names.get(line.name)
        if name is None:
            continue
        if name in prompts:
            raise InputError(f"{place}: every prompt must be in the file once, but {line.name!r} is there again.")
        _check(line, name, place)
        prompts[name] = JudgePrompt(name, line.system_prompt, line.prompt_template)
    missing = [text for text, name in names.items() if name not in prompts]
    if missing:
        raise InputError(f"{source}: the prompts {', '.join(names)} are needed, but {', '.join(missing)} is missing.")
    return prompts


def _check(line: _PromptLine, name: PromptName, place: str) -> None:
    """Raise InputError unless the template can be filled in, shows what is judged, and asks for a known verdict."""
    if line.output_format not in (None, OUTPUT[name.kind]):
        raise InputError(
            f"{place}: `output_format` of {name} must be {OUTPUT[name.kind]!r}, got {line.output_format!r}."
        )
    try:
        fields = list(string.Formatter().parse(line.prompt_template))
    except ValueError as error:
        raise InputError(f"{place}: `prompt_template`: {error}; a brace that is meant as such is doubled.") from None
    used = {field for _, field, _, _ in fields if field is not None}
    formatted = any(spec or conversion for _, _, spec, conversion in fields)
    allowed = ", ".join(f"{{{field}}}" for field in sorted(name.placeholders))
    if formatted or not used <= name.placeholders:
        raise InputError(
            f"{place}: placeholders of {name} must be among {allowed}, but got "
            f"{', '.join(f'{{{field}}}' for field in sorted(used - name.placeholders)) or 'one with a format'}; "
            "a brace that is meant as such is doubled."
        )
    if not name.answers <= used:
        unseen = ", ".join(f"{{{field}}}" for field in sorted(name.answers - used))
        raise InputError(f"{place}: {name} must show the judge every answer that it judges, but lacks {unseen}.")
