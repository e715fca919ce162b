"""How the rows of preference pairs are read: names of columns and fields, and what to do about bad rows."""

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tune_dlrml.domains import Frozen, law

Name = Annotated[str, Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]


class ColumnsConfig(Frozen):
    """Columns that hold the parts of a pair.

    With `system`, texts are turns of a conversation, the prompt the user's and the answers the assistant's.
    """

    prompt: Name | None = "prompt"
    """`prompt` is used in rows that have it; another name is needed in every row; null uses the start that chosen and
    rejected share, whatever columns there are."""
    system: Name | None = None
    """Of a system message that is put in front."""
    chosen: Name = "chosen"
    """Of the preferred answer."""
    rejected: Name = "rejected"
    """Of the other one."""

    def names(self) -> tuple[str, ...]:
        """The columns that are read."""
        return tuple(name for name in (self.system, self.prompt, self.chosen, self.rejected) if name is not None)

    @model_validator(mode="after")
    def _differ(self) -> Self:
        name, count = Counter(self.names()).most_common(1)[0]
        if count > 1:
            raise law(f"each part of a pair needs its own column, but {name!r} is named twice", key="chosen")
        return self


class MessagesConfig(Frozen):
    """Fields that hold role and content of a message, and what roles are called in the chat template."""

    role: Name = "role"
    """Field of the role."""
    content: Name = "content"
    """Field of the text."""
    roles: dict[Name, Name] = Field(default_factory=dict)
    """From a role of the rows to the one that the chat template knows, such as {human: user, gpt: assistant}."""

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.role == self.content:
            raise law(f"role and content need a field each, but both are {self.role!r}", key="content")
        return self


class RowsConfig(Frozen):
    """How rows are read, whatever file they come from."""

    columns: ColumnsConfig = ColumnsConfig()
    """Columns with names other than TRL's."""
    messages: MessagesConfig = MessagesConfig()
    """Fields and roles of messages with names other than TRL's."""
    prompt_in_answers: Literal["refuse", "strip", "keep"] = "refuse"
    """What to do if both answers start with the prompt, which would then be trained on twice."""
    bad_rows: Literal["refuse", "drop"] = "refuse"
    """What to do about rows that are not pairs, that the chat template refuses or from which nothing can be learnt."""


class DatasetConfig(RowsConfig):
    """References to preference pairs: files, folders or globs of them, a hub id or `builtin:`, each with `#split[a:b]`.

    Everything that is dropped or truncated is counted and reported before a search starts.
    """

    train: Text
    """Pairs to train on."""
    eval: Text
    """Held-out pairs that decide every rung."""
    test: Text | None = None
    """Held-out pairs for the final verdict only."""
    shared_prompts: Literal["drop", "refuse", "keep"] = "drop"
    """What to do about held-out rows whose prompt is trained on."""
    long_pairs: Literal["truncate", "drop", "refuse"] = "truncate"
    """What to do about pairs of more than training.max_length tokens; `truncate` follows training.truncation_mode.

    `truncate` also leaves out a pair whose prompt alone fills max_length, as in TRL, and one whose completions are then
    the same.
    """

    def references(self) -> dict[str, str]:
        """The references that are given, by their key."""
        given = {"train": self.train, "eval": self.eval, "test": self.test}
        return {key: reference for key, reference in given.items() if reference is not None}
