"""What one check of the doctor found."""

from dataclasses import dataclass
from typing import Literal

from tune_dlrml.doctor.loss_box import Box

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """What one check found; of a loss, with the shares of its box."""

    subject: str
    level: Level
    text: str
    box: Box | None = None

    def as_json(self) -> dict[str, str]:
        """What it is about, how bad that is, and what was found."""
        return {"subject": self.subject, "level": self.level, "text": self.text}
