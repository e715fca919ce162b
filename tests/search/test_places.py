"""A storage folder may have any name, be moved, and belong to a user without a home."""

import os
import re
import shlex
from pathlib import Path

import pytest
import sqlalchemy

import tune_dlrml
from tune_dlrml.cli.main import _mlflow_command
from tune_dlrml.errors import InputError
from tune_dlrml.models import conversion
from tune_dlrml.search.result import SearchPlace
from tune_dlrml.study.database import open_storage, sqlite_file, sqlite_url
from tune_dlrml.system.urls import without_password

NAMES = [
    "plain", "a b", "q?now", "q?a=b&password=c", "p%41c", "50% done", "%s", "%2F", "x%2Fy", "h#x", "#", "ünï", "日本",
    "{x}", "{SCHEMA_VERSION}", "a:b@c", "user:pw@host", "'q'", '"', "$HOME", "`id`", "a;b&c=d", "[b]", "[bold]", "a\\b",
    "~", "+", "a,b", "!", "*", "\N{PILE OF POO}",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_database_is_written_where_its_folder_is_and_nowhere_else(tmp_path, name):
    storage = tmp_path / "outer" / name
    url = SearchPlace(storage).study_url("toy")
    (storage / "toy").mkdir(parents=True)
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE numbers (number INTEGER)"))
    engine.dispose()
    assert [path.name for path in (tmp_path / "outer").iterdir()] == [name]
    assert [path.name for path in (storage / "toy").iterdir()] == ["study.db"]
    assert sqlite_file(url) == storage / "toy" / "study.db" and without_password(url) == url


@pytest.mark.parametrize("name", ["q?now", "p%41c", "{SCHEMA_VERSION}"])
def test_optuna_takes_the_url_of_a_study(tmp_path, name):
    storage = tmp_path / name
    storage.mkdir()
    opened = open_storage(sqlite_url(storage / "study.db"))
    opened.remove_session()
    opened.engine.dispose()
    assert [path.name for path in tmp_path.rglob("*")] == [name, "study.db"]


@pytest.mark.parametrize("name", NAMES)
def test_the_command_that_is_printed_opens_the_same_file_in_a_shell(tmp_path, name):
    storage = tmp_path / name
    words = shlex.split(_mlflow_command(SearchPlace(storage).mlflow_uri))
    assert words[1:3] == ["ui", "--backend-store-uri"] and len(words) == 4
    assert Path(sqlalchemy.make_url(words[3]).database) == storage / "mlflow.db"


def test_an_ordinary_path_is_shown_as_it_is():
    assert sqlite_url(Path("/data/runs of me/mlflow.db")) == "sqlite:////data/runs of me/mlflow.db"


def test_no_url_is_put_together_by_hand():
    package = Path(tune_dlrml.__file__).parent
    by_hand = re.compile(r"""f["'](sqlite|file|postgresql)[+\w]*://""")
    found = [path.name for path in package.rglob("*.py") if by_hand.search(path.read_text(encoding="utf-8"))]
    assert found == ["database.py"]  # where the one helper compares its own with the plain form


@pytest.mark.parametrize("address", ["", "local", None])
def test_no_address_and_a_local_one_are_a_cluster_of_this_machines_own(config_with, address):
    assert SearchPlace(Path("runs"), address).of(config_with())[0].ray_address is None


@pytest.mark.parametrize("cache", ["/proc/nobody", "file/below", "~/.cache"])
def test_a_cache_of_models_that_cannot_be_made_is_refused_with_the_variable_that_helps(tmp_path, monkeypatch, cache):
    (tmp_path / "file").touch()
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    folder = Path(cache) if cache[0] in "/~" else tmp_path / cache
    monkeypatch.setattr(conversion, "model_cache", lambda: folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="set XDG_CACHE_HOME to a folder that can"):
        conversion.convert_once(tmp_path / "model.gguf")
    assert sorted(os.listdir(tmp_path)) == ["file", "model.gguf"]
