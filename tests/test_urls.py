import pytest

from tune_dlrml.system.urls import passwords_in, without_password


@pytest.mark.parametrize(
    ("url", "bare"),
    [
        ("postgresql://me:secret@host:5432/study", "postgresql://me@host:5432/study"),
        (
            "postgresql+psycopg://me:s:e@c@host/study?sslmode=require",
            "postgresql+psycopg://me@host/study?sslmode=require",
        ),
        ("postgresql://host/study?user=me&password=secret", "postgresql://host/study?user=me"),
        ("postgresql://host/study?password=secret&user=me", "postgresql://host/study?user=me"),
        ("postgresql://host/study?password=secret", "postgresql://host/study"),
        ("postgresql://me:se/c?r#et@host/study", "postgresql://me@host/study"),
        ("postgresql://me@host/study?sslpassword=secret&sslmode=require", "postgresql://me@host/study?sslmode=require"),
        ("postgresql://me@host/study?a=1&password=secret&b=2", "postgresql://me@host/study?a=1&b=2"),
        ("postgresql://me:secret@host/study?application_name=a@b", "postgresql://me@host/study?application_name=a@b"),
        ("http://me:se/cret@host:5000", "http://me@host:5000"),
        ("https://me:secret@mlflow.example.org", "https://me@mlflow.example.org"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("http://127.0.0.1:5000/a@b", "http://127.0.0.1:5000/a@b"),
        ("postgresql://me@host/study", "postgresql://me@host/study"),
        ("sqlite:////tmp/runs/mlflow.db", "sqlite:////tmp/runs/mlflow.db"),
    ],
)
def test_a_url_loses_its_password_and_nothing_else(url, bare):
    assert without_password(url) == bare


@pytest.mark.parametrize(
    ("url", "passwords"),
    [
        ("postgresql://me:secret@host:5432/study", ["secret"]),
        ("postgresql+psycopg://me:s:e@c@host/study?sslmode=require", ["s:e@c"]),
        ("postgresql://me:se/c?r#et@host/study", ["se/c?r#et"]),
        ("postgresql://me:secret@host/study?application_name=a@b", ["secret"]),
        ("postgresql://me:one@host/study?a=1&PASSWORD=two&sslpassword=three#four", ["one", "two", "three"]),
        ("https://me:sec%40ret@mlflow.example.org", ["sec%40ret"]),
        ("http://127.0.0.1:5000/a@b", []),
        ("postgresql://me:@host/study?password=", []),
        ("postgresql://me@host/study", []),
        ("sqlite:////tmp/runs/mlflow.db", []),
    ],
)
def test_the_passwords_in_a_url_are_found_as_they_stand_there(url, passwords):
    assert passwords_in(url) == passwords
