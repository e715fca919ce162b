"""References to preference pairs: files, a built-in set or a hub id, with a selection of rows."""

import difflib
import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tune_dlrml.errors import InputError
from tune_dlrml.system.hub import HUB_ID

BUILTIN_PREFIX = "builtin:"
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
FORMS = (
    f"a data set is a file ({', '.join(SUFFIXES)}, each also with {', '.join(COMPRESSIONS)}), a folder or a glob of "
    "them, `builtin:<name>` or a hub id `org/name[@revision]`, each with an optional `#split`, `#split[:1000]` or "
    "`#[:64]`"
)

_REFERENCE = re.compile(
    r"(?P<location>[^#\0]+)(?:#(?P<split>\w+(?:\.\w+)*)?(?:\[(?P<start>-?\d{1,12})?:(?P<stop>-?\d{1,12})?\])?)?"
)


@dataclass(frozen=True)
class DatasetReference:
    """Where preference pairs come from.

    Attributes:
        kind: Files, built-in or from a hub.
        location: An absolute path or pattern, the name of a built-in set, or a hub id.
        revision: Branch, tag or commit of a hub id; None is the hub's default branch.
        split: Name of the split; None is the only one of a file, and `train` of a folder or a hub data set.
        start: First row, as in a Python slice.
        stop: Row before which to stop, as in a Python slice.
    """

    kind: Literal["file", "builtin", "hub"]
    location: str
    revision: str | None = None
    split: str | None = None
    start: int | None = None
    stop: int | None = None

    def __str__(self) -> str:
        """The text that `parse_dataset_reference` reads back, from any working directory."""
        prefix = BUILTIN_PREFIX if self.kind == "builtin" else ""
        revision = f"@{self.revision}" if self.revision else ""
        bounds = ["" if bound is None else str(bound) for bound in (self.start, self.stop)]
        rows = f"[{':'.join(bounds)}]" if any(bounds) else ""
        selection = f"#{self.split or ''}{rows}" if self.split or rows else ""
        return f"{prefix}{self.location}{revision}{selection}"


def parse_dataset_reference(text: str) -> DatasetReference:
    """Parse a reference; only its form is checked, see `check_dataset_reference`.

    Files become absolute, since the workers that load the pairs run in another working directory.
    """
    match = _REFERENCE.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{text!r} is not a reference to a data set: {FORMS}.")
    location, split = match["location"].strip(), match["split"]
    start, stop = (None if match[bound] is None else int(match[bound]) for bound in ("start", "stop"))
    if location.startswith(BUILTIN_PREFIX):
        name = location.removeprefix(BUILTIN_PREFIX)
        return DatasetReference("builtin", name, split=split, start=start, stop=stop)
    if "://" in location:
        raise InputError(f"{text!r} is a URL; download it and name the file. What is allowed: {FORMS}.")
    path = Path(location).expanduser() if location.startswith("~/") else Path(location)
    if format_of(path) is not None or os.path.isdir(path) or glob.has_magic(location):
        return DatasetReference("file", _absolute(path), split=split, start=start, stop=stop)
    hub = HUB_ID.fullmatch(location)
    if hub is None or path.exists():
        raise InputError(f"{text!r} is not a reference to a data set: {FORMS}.{did_you_mean(path)}")
    return DatasetReference("hub", hub["id"], hub["revision"], split, start, stop)


def format_of(path: Path) -> tuple[str, str] | None:
    """Suffixes of format and compression (may be empty) that the name of a file of pairs ends with; None of others."""
    name = path.name.lower()
    compression = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    suffix = Path(name.removesuffix(compression)).suffix
    return (suffix, compression) if suffix in SUFFIXES else None


def _absolute(path: Path) -> str:
    if glob.has_magic(str(path)) and not path.exists():
        # Only the given text is a pattern, not the working directory.
        return str(path if path.is_absolute() else Path(glob.escape(str(Path.cwd()))) / path)
    try:
        return str(path.resolve())
    except (OSError, RuntimeError):  # circular links; opening the file reports them
        return str(path.absolute())


def did_you_mean(path: Path) -> str:
    """Name a file of pairs beside `path` whose name is close, or one inside it."""
    try:
        folder = path if path.is_dir() else path.parent
        names = sorted(entry.name for entry in folder.iterdir() if format_of(entry) is not None)
    except OSError:
        return ""
    near = names if folder is path else difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean {folder / near[0]}?" if near else ""
