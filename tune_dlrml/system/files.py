"""Files that are either the old ones or the new ones, never something between."""

import errno
import os
from pathlib import Path

WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What a file system says that keeps no locks."""


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
        if durable:
            sync_folder(path.parent)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def sync_folder(path: Path) -> None:
    """Put the names in a folder on the disk."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
