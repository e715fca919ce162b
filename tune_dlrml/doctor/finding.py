"""What one check of the doctor found."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tune_dlrml.doctor.loss_box import LossBox

if TYPE_CHECKING:
    from tune_dlrml.doctor.memory import MemoryEstimate

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """What one check found; of a loss, with the shares of its box, of memory, with all that was computed."""

    subject: str
    level: Level
    text: str
    loss_box: LossBox | None = None
    memory: "MemoryEstimate | None" = None

    def as_json(self) -> dict[str, str]:
        """What it is about, how bad that is, and what was found."""
        return {"subject": self.subject, "level": self.level, "text": self.text}
