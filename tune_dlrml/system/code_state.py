"""The code that a number rests on: versions of packages and, from a checkout of this project, its commit."""

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import tune_dlrml

PACKAGES = ("tune-dlrml", "torch", "transformers", "trl", "peft", "ray", "optuna", "mlflow")
COMMIT, DIRTY = "mlflow.source.git.commit", "mlflow.source.git.dirty"
"""MLflow's names of tags."""
GIT_S = 20.0
"""What git may take; a commit that is not known by then is not written down."""
CODE = ("tune_dlrml", "pyproject.toml")
"""What of a checkout a number rests on."""


def code_state() -> dict[str, str]:
    """The versions of the packages, and the commit of this project where it runs from its checkout."""
    versions = {f"version.{package}": metadata.version(package) for package in PACKAGES}
    return versions | commit_of(Path(tune_dlrml.__file__).resolve().parents[1])


def commit_of(root: Path) -> dict[str, str]:
    """The commit of a checkout and whether what counts in it has changed since; nothing where `root` is none.

    A folder inside somebody else's checkout, where a package may be installed, is none: git is asked about `root`
    alone, whatever lies above it and whatever the environment says of another repository.

    Args:
        root: The folder that holds the package.
    """
    if not (root / ".git").exists() or shutil.which("git") is None:
        return {}
    commit, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--", *CODE)
    if commit is None or changes is None:
        return {}
    return {COMMIT: commit.strip(), DIRTY: "true" if changes.strip() else "false"}


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), "--no-optional-locks", f"--git-dir={root / '.git'}", f"--work-tree={root}"]
    try:
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, timeout=GIT_S)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None


def told(tags: Mapping[str, str]) -> Iterator[str]:
    """What tags of `code_state` say, as a person reads it."""
    for name, value in tags.items():
        if name == COMMIT:
            yield f"commit {value[:12]}{' with changes' if tags.get(DIRTY) == 'true' else ''}"
        elif name != DIRTY:
            yield f"{name.removeprefix('version.')} {value}"
