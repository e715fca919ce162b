import functools
import gc
import secrets
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import toy

LONGEST = (
    "test_judged_search",
    "test_killed_driver",
    "test_compose",
    "test_notebook",
    "test_slot",
    "test_canary",
    "test_search_end_to_end",
    "test_export",
    "test_two_workers",
    "test_models",
    "test_run",
    "test_evaluate_command",
    "test_tracking",
    "test_page",
    "test_checkpoint_resume",
    "test_reference_cache",
)
"""Files that take long and are begun first, so that no process is left alone with one in the end."""


gc.disable()  # until all is collected: what imports make is looked through again and again, and stays


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m slow`, files without a slow test are not imported: they are most of the suite."""
    if config.option.markexpr == "slow" and collection_path.suffix == ".py":
        return "mark.slow" not in collection_path.read_text(encoding="utf-8") or None
    return None


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(autouse=True, scope="session")
def imports_stay_frozen() -> Iterator[None]:
    """A worker's end in this process does not hand its imports back to every collection of the tests after it."""
    with mock.patch("gc.unfreeze"):
        yield


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk() -> Iterator[None]:
    """What tests of this process write does not depend on a power cut."""
    with mock.patch("os.fsync", lambda descriptor: None):
        yield


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_sqlite() -> Iterator[None]:
    """Nor what they ask of SQLite."""
    if "sqlalchemy" not in sys.modules:
        yield
        return
    from sqlalchemy import Engine, event

    def relax(connection: Any, _: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", relax)
    yield
    event.remove(Engine, "connect", relax)


@pytest.fixture(autouse=True, scope="session")
def migrations_read_once() -> None:
    """Opening a database, Optuna and MLflow read all scripts of migrations, which is most of what it takes."""
    if "sqlalchemy" in sys.modules:
        from alembic.util import pyfiles

        load, kept = pyfiles.load_module_py, functools.cache(pyfiles.load_module_py)
        pyfiles.load_module_py = lambda name, path: (load if name == "env_py" else kept)(name, path)  # env.py migrates


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The tensors are tiny: torch's logsigmoid opens a parallel region even for 8 numbers, 7 ms on a busy machine."""
    if "torch" in sys.modules:  # the tests that need it have imported it by now
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_model(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def local_ray() -> Iterator[str]:
    """A Ray cluster of this test session's own; yields its address."""
    import ray

    folder = Path(tempfile.mkdtemp(prefix="ray_", dir="/tmp"))  # a short path: Ray puts sockets into it
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_prestart_worker_first_driver": "0",  # searches have an environment of their own
            "TMPDIR": str(folder),  # what the dashboard's processes leave is removed with the folder
            "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
            "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
            "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
            "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
        }.items():
            environment.setenv(name, value)
        context = ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=True,  # Ray Train frees placement groups through it
            log_to_driver=False,
            _temp_dir=str(folder),
        )
        address = context.address_info["gcs_address"]
        environment.setenv("RAY_ADDRESS", address)
        try:
            yield address
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
