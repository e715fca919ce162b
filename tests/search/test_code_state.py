"""What of a commit is written down: this project's own, with its dirty state, and nobody else's."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tune_dlrml.system.code_state import COMMIT, DIRTY, commit_of, in_words

Checkout = Callable[[str], Path]


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    def make(name: str) -> Path:
        root = tmp_path / name
        (root / "tune_dlrml").mkdir(parents=True)
        (root / "tune_dlrml" / "__init__.py").write_text("")
        (root / "pyproject.toml").write_text("")
        git(root, "init", "--quiet")
        git(root, "add", ".")
        git(root, "commit", "--quiet", "--message", "one")
        return root

    return make


def test_a_checkout_of_the_project_has_its_commit(checkout: Checkout) -> None:
    root = checkout("own")
    assert commit_of(root) == {COMMIT: git(root, "rev-parse", "HEAD").strip(), DIRTY: "false"}


@pytest.mark.parametrize(
    ("path", "dirty"),
    [
        ("tune_dlrml/__init__.py", "true"),  # changed
        ("tune_dlrml/new.py", "true"),  # not under version control
        ("pyproject.toml", "true"),
        ("notes.txt", "false"),  # no number rests on it
    ],
)
def test_a_change_in_what_numbers_rest_on_makes_it_dirty(checkout: Checkout, path: str, dirty: str) -> None:
    root = checkout("own")
    (root / path).write_text("changed = 1\n")
    assert commit_of(root)[DIRTY] == dirty


@pytest.mark.parametrize("inside", ["venv/lib/python3.11/site-packages", "vendored"])
def test_a_package_inside_another_repository_has_no_commit(checkout: Checkout, inside: str) -> None:
    root = checkout("theirs") / inside
    (root / "tune_dlrml").mkdir(parents=True)
    assert commit_of(root) == {}


def test_a_repository_that_the_environment_names_is_not_asked(
    checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, own = checkout("theirs"), checkout("own")
    git(theirs, "commit", "--quiet", "--allow-empty", "--message", "two")
    expected = git(own, "rev-parse", "HEAD").strip()
    monkeypatch.setenv("GIT_DIR", str(theirs / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(theirs))
    assert commit_of(own)[COMMIT] == expected
    (tmp_path / "installed" / "tune_dlrml").mkdir(parents=True)
    assert commit_of(tmp_path / "installed") == {}


def test_a_further_worktree_of_the_project_is_a_checkout(checkout: Checkout, tmp_path: Path) -> None:
    root = checkout("own")
    git(root, "worktree", "add", "--quiet", str(tmp_path / "second"))
    assert commit_of(tmp_path / "second") == {COMMIT: git(root, "rev-parse", "HEAD").strip(), DIRTY: "false"}


def test_a_repository_without_a_commit_or_a_machine_without_git_has_none(
    checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bare" / "tune_dlrml").mkdir(parents=True)
    git(tmp_path / "bare", "init", "--quiet")
    assert commit_of(tmp_path / "bare") == {}
    root = checkout("own")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(root) == {}


def test_a_person_reads_commit_and_state_as_one() -> None:
    tags = {"version.trl": "1.16.0", COMMIT: "0123456789abcdef", DIRTY: "true"}
    assert [*in_words(tags)] == ["trl 1.16.0", "commit 0123456789ab with changes"]
    assert [*in_words(tags | {DIRTY: "false"})] == ["trl 1.16.0", "commit 0123456789ab"]
    assert [*in_words({COMMIT: "0123456789abcdef"})] == ["commit 0123456789ab"]  # of a study before dirty states
