"""The code behind a number: versions of packages and, from a checkout of this project, its commit."""

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
"""Time limit for git; a commit that is unknown by then is not recorded."""
CODE = ("tune_dlrml", "pyproject.toml")
"""Paths of a checkout that influence numbers."""


def code_state() -> dict[str, str]:
    """The versions of the packages, and the commit of this project where it runs from its checkout."""
    versions = {f"version.{package}": metadata.version(package) for package in PACKAGES}
    return versions | commit_of(Path(tune_dlrml.__file__).resolve().parents[1])


def commit_of(root: Path) -> dict[str, str]:
    """The commit of a checkout and whether its code has changed since; empty where `root` is not a checkout.

    A folder inside another project's checkout, where a package may be installed, is not one: git looks at `root` only,
    not at the folders above it or at a repository that the environment names.

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


def in_words(tags: Mapping[str, str]) -> Iterator[str]:
    """The tags of `code_state` as text."""
    for name, value in tags.items():
        if name == COMMIT:
            yield f"commit {value[:12]}{' with changes' if tags.get(DIRTY) == 'true' else ''}"
        elif name != DIRTY:
            yield f"{name.removeprefix('version.')} {value}"
