import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy


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
