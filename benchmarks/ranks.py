"""A program once for each rank of a gloo group on this machine."""

import os
import subprocess
from collections.abc import Sequence


def run_ranks(command: Sequence[str], world: int) -> None:
    """Run `command --rank R --world W` for every rank at once, a thread each, and wait for all.

    Raises:
        RuntimeError: A rank ended with another exit status than 0.
    """
    group = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    processes = [
        subprocess.Popen(
            [*command, "--world", str(world), "--rank", str(rank)],
            env=os.environ | group | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(world)
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError(f"every rank must end with 0, but they ended with {codes}")
