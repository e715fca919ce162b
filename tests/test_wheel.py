"""The wheel holds what a search needs, and its commands run where there is no checkout."""

import email
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[1]
SHIPPED = ("pyproject.toml", "README.md", "LICENSE", "tune_dlrml", "search_spaces")
PUBLIC = {"arxiv.org"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, since setuptools leaves a folder beside what it builds."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("out")
    subprocess.run(["cp", "--recursive", *(ROOT / name for name in SHIPPED), copy], check=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, copy]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_has_every_file_of_the_package_and_every_search_space(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    listed = subprocess.run(["git", "ls-files", "tune_dlrml"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) - {"tune_dlrml/search_spaces"} <= names
    assert {f"tune_dlrml/search_spaces/{path.name}" for path in (ROOT / "search_spaces").iterdir()} <= names
    assert not [name for name in names if name.startswith(("tests", "docs", "benchmarks", "faults"))]


def test_its_addresses_are_public(wheel):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
    fields = email.message_from_bytes(archive.read(metadata))
    assert {urlsplit(field.partition(", ")[2]).hostname for field in fields.get_all("Project-URL")} <= PUBLIC


def test_built_in_searches_run_by_name_from_an_installed_package(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = (
        "from tune_dlrml.config import load_config\n"
        "load_config('builtin:quickstart')\n"
        "from tune_dlrml.cli.main import app\n"
        "app(['spaces', '--json'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    files = [Path(listed["file"]) for listed in json.loads(done.stdout)]
    assert files
    assert {path.parent for path in files} == {tmp_path / "tune_dlrml" / "search_spaces"}
