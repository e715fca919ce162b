"""The module that is loaded is the file that is hashed, whatever Python remembers of its name."""

import hashlib
import importlib
import os
import py_compile
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tune_dlrml.errors import InputError
from tune_dlrml.system.own_code import load_module

Write = Callable[[str], Path]


@pytest.fixture
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of a module that no other test has, and that is forgotten afterwards."""
    own = f"own_{abs(hash(request.node.nodeid))}"
    yield own
    for known in [known for known in sys.modules if known.partition(".")[0] == own]:
        del sys.modules[known]


@pytest.fixture
def write(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.chdir(tmp_path)
    return lambda text: written(tmp_path / "path" / f"{name}.py", text)


def written(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_an_edit_counts_though_the_module_was_imported_before(write: Write, name: str) -> None:
    write("x = 1\n")
    assert importlib.import_module(name).x == 1
    file = write("x = 22\n")
    loaded = load_module(name)
    assert (loaded.module.x, loaded.sha256, loaded.file) == (22, sha256(file), file)
    assert sys.modules[name] is loaded.module
    assert load_module(name) is loaded, "the same file, the same module"


def test_bytecode_of_another_state_of_the_same_size_and_second_is_not_used(write: Write, name: str) -> None:
    file = write("x = 1\n")
    py_compile.compile(str(file), doraise=True)
    before = file.stat()
    write("x = 2\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert importlib.import_module(name).x == 1, "or else this test shows nothing"
    assert load_module(name).module.x == 2
    py_compile.compile(str(file), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    write("x = 3\n")
    assert load_module(name).module.x == 3


def test_a_file_that_goes_back_to_an_earlier_state_is_that_state(write: Write, name: str) -> None:
    hashes = []
    for text in ("x = 1\n", "x = 2\n", "x = 1\n"):
        write(text)
        loaded = load_module(name)
        assert loaded.module.x == int(text[4])
        hashes.append(loaded.sha256)
    assert hashes[0] == hashes[2] != hashes[1]


def test_a_module_that_was_imported_from_another_folder_is_found_again(
    write: Write, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("x = 1\n")
    assert load_module(name).module.x == 1
    written(tmp_path / "first" / f"{name}.py", "x = 2\n")
    monkeypatch.syspath_prepend(tmp_path / "first")
    assert load_module(name).module.x == 2


@pytest.mark.parametrize("place", ["{}.py", "{}/__init__.py"])
def test_two_different_files_of_one_name_are_refused_and_two_equal_ones_not(
    write: Write, name: str, tmp_path: Path, place: str
) -> None:
    taken = write("x = 1\n")
    here = written(tmp_path / place.format(name), "x = 2\n")
    with pytest.raises(InputError, match="two different files") as refusal:
        load_module(name)
    assert str(taken) in str(refusal.value) and str(here) in str(refusal.value)
    here.write_text("x = 1\n")
    assert load_module(name).module.x == 1


def test_a_module_of_a_package_keeps_its_relative_imports(write: Write, name: str, tmp_path: Path) -> None:
    folder = tmp_path / "path" / name
    written(folder / "__init__.py", "")
    written(folder / "constants.py", "TWO = 2\n")
    written(folder / "inner.py", "from .constants import TWO\n\nx = TWO\n")
    assert load_module(f"{name}.inner").module.x == 2
    file = written(folder / "inner.py", "from .constants import TWO\n\nx = TWO + 1\n")
    loaded = load_module(f"{name}.inner")
    assert loaded.module.x == 3 and loaded.sha256 == sha256(file)
    assert sys.modules[name].inner is loaded.module


def test_dataclasses_and_a_module_s_own_name_work(write: Write, name: str) -> None:
    write(
        "from __future__ import annotations\nimport sys\nfrom dataclasses import dataclass\n\n"
        "@dataclass\nclass Point:\n    x: int = 3\n\nme = sys.modules[__name__]\n"
    )
    module = load_module(name).module
    assert module.Point().x == 3 and module.me is module and module.__name__ == name


def test_one_that_fails_leaves_the_one_before(write: Write, name: str) -> None:
    write("x = 1\n")
    before = load_module(name).module
    write("x = 2\n1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        load_module(name)
    assert sys.modules[name] is before
    write("def f(:\n")
    with pytest.raises(SyntaxError):
        load_module(name)


@pytest.mark.parametrize(
    ("module", "says"), [("math", "must be a Python file"), ("sys", "must be a Python file"), ("zlib", "must be")]
)
def test_what_is_no_python_file_is_refused(module: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        load_module(module)


def test_a_folder_is_no_file_and_a_missing_module_is_missing(name: str, tmp_path: Path, write: Write) -> None:
    (tmp_path / "path" / name).mkdir(parents=True)
    with pytest.raises(InputError, match="a folder without an __init__"):
        load_module(name)
    for missing in ("nowhere_at_all", "nowhere_at_all.inner", "json.nowhere"):
        with pytest.raises(ModuleNotFoundError, match="nowhere"):
            load_module(missing)
