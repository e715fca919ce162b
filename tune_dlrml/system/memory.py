"""Memory that is free for this process: the machine's, or less where its control groups limit it.

In a container `/proc/meminfo` describes the whole machine, but a process is killed at the container's limit.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

PROC = Path("/proc/self")


class _Files(NamedTuple):
    """Names in a control group: of its limits, of its usage, and of the part of it that the kernel can reclaim."""

    limits: tuple[str, ...]
    usage: str
    cache: str


V1 = _Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
V2 = _Files(("memory.max", "memory.high"), "memory.current", "inactive_file")


def free_memory(proc: Path = PROC) -> int:
    """Bytes of main memory that are free for this process.

    Limits of version 1 or 2 count, of its own control group and of every visible one above. Inactive file pages count
    as free, since the kernel drops them before it kills a process.

    Args:
        proc: Folder of this process in /proc.
    """
    limited = [left for folder, files in _groups(proc) if (left := _left(folder, files)) is not None]
    return max(0, min([int(psutil.virtual_memory().available), *limited]))


def _groups(proc: Path) -> Iterator[tuple[Path, _Files]]:
    """The memory groups that this process is in, from its own up to the highest that is mounted."""
    own = _own_groups(proc)
    for line in _lines(proc / "mountinfo"):
        before, _, behind = line.partition(" - ")
        fields, kind = before.split(), behind.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        root, mount = Path(_plain(fields[3])), Path(_plain(fields[4]))
        if kind[0] == "cgroup2" and "" in own:
            yield from ((folder, V2) for folder in _upwards(mount, root, own[""]))
        elif kind[0] == "cgroup" and "memory" in kind[2].split(",") and "memory" in own:
            yield from ((folder, V1) for folder in _upwards(mount, root, own["memory"]))


def _own_groups(proc: Path) -> dict[str, Path]:
    """Path of this process's group by controller; version 2 has no name."""
    found: dict[str, Path] = {}
    for line in _lines(proc / "cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        found |= {controller: Path(path) for controller in controllers.split(",")}
    return found


def _upwards(mount: Path, root: Path, own: Path) -> Iterator[Path]:
    """Folders of a group and of those above; where only a part of the hierarchy is mounted, as far as that goes."""
    inner = own.relative_to(root) if own.is_relative_to(root) else Path()
    yield from (mount / part for part in (inner, *inner.parents))


def _left(folder: Path, files: _Files) -> int | None:
    limits = [int(text) for name in files.limits for text in _lines(folder / name) if text.isdecimal()]
    usage = [int(text) for text in _lines(folder / files.usage) if text.isdecimal()]
    if not limits or not usage:
        return None
    stat = dict(line.split() for line in _lines(folder / "memory.stat") if len(line.split()) == 2)
    return min(limits) - usage[0] + int(stat.get(files.cache, 0))


def _lines(path: Path) -> list[str]:
    """Lines of a file; empty if it is missing or unreadable."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _plain(path: str) -> str:
    """A path of mountinfo, where blanks are octal numbers."""
    return path.replace("\\040", " ").replace("\\011", "\t")
