from pathlib import Path

import pytest

from tune_dlrml.config import to_yaml
from tune_dlrml.errors import InputError
from tune_dlrml.search.result import SearchPlace


@pytest.fixture
def config(config_with):
    config = config_with(study_url="postgresql://me:secret@db/study")
    tracking = config.tracking.model_copy(update={"mlflow": "https://me:secret@mlflow.example.org"})
    return config.model_copy(update={"tracking": tracking})


def test_a_place_keeps_the_passwords_and_the_configuration_loses_them(config):
    place, bare = SearchPlace(Path("runs")).of(config)
    assert place.study_url("planted") == "postgresql+psycopg://me:secret@db/study"
    assert place.mlflow_uri == "https://me:secret@mlflow.example.org"
    assert "secret" not in to_yaml(bare) + repr(place) + repr(bare)
    assert bare.search.study_url == "postgresql://me@db/study"


def test_an_address_given_beside_the_file_wins(config):
    place, bare = SearchPlace(Path("runs"), study="postgresql://other@db2/study").of(config)
    assert place.study_url("planted") == "postgresql+psycopg://other@db2/study"
    assert bare.search.study_url == "postgresql://other@db2/study"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../up", "a/b", "/etc", "a b", "-x", "ends.", "x" * 101, "a\0b", "mlflow.db", "reference"]
)
def test_a_name_that_could_lead_elsewhere_is_refused(name):
    with pytest.raises(InputError, match="--name"):
        SearchPlace(Path("runs")).folder(name)
