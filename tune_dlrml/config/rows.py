"""How the rows of preference pairs are read: which columns and fields hold what, and what is done about odd rows."""

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tune_dlrml.config.domains import Frozen, law

Name = Annotated[str, Field(min_length=1)]


class ColumnsConfig(Frozen):
    """Columns that hold the parts of a pair.

    `prompt: prompt` is looked for where rows give it; another name is needed in every row; null takes the start that
    chosen and rejected share, whatever columns there are. `system` puts a system message in front: texts are then turns
    of a conversation, the prompt the user's and the answers the assistant's.
    """

    prompt: Name | None = "prompt"
    system: Name | None = None
    chosen: Name = "chosen"
    rejected: Name = "rejected"

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
    content: Name = "content"
    roles: dict[Name, Name] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.role == self.content:
            raise law(f"role and content need a field each, but both are {self.role!r}", key="content")
        return self


class RowsConfig(Frozen):
    """How rows are read, whatever file they come from.

    - `columns` and `messages`: names other than TRL's.
    - `prompt_in_answers`, where both answers begin with the prompt, which would be trained on twice: refused, stripped
      from the answers or kept.
    - `bad_rows`, which are no preference pairs, which the chat template refuses or whose tokens nothing can be learnt
      from: refused with the first of them, or dropped.
    """

    columns: ColumnsConfig = ColumnsConfig()
    messages: MessagesConfig = MessagesConfig()
    prompt_in_answers: Literal["refuse", "strip", "keep"] = "refuse"
    bad_rows: Literal["refuse", "drop"] = "refuse"
