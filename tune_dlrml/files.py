"""Files that are either the old ones or the new ones, never something between."""

import os
from pathlib import Path


def replace_file(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a file aside and rename it, so that there is either the old one or the new one."""
    aside = path.with_name(f"{path.name}.partial")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
