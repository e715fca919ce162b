"""Free memory is the machine's or what a control group leaves, whichever is less."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tune_dlrml.system import memory
from tune_dlrml.system.memory import free_memory
from tune_dlrml.training import activations

GIB = 2**30
UNLIMITED_V1 = 9223372036854771712
V2_MOUNT = "31 22 0:26 / {0} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 GiB are free on the machine."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GIB))


def proc(folder: Path, cgroup: str, *mounts: str) -> Path:
    made = folder / "proc"
    made.mkdir()
    (made / "cgroup").write_text(cgroup)
    (made / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + "".join(f"{each}\n" for each in mounts))
    return made


def group(folder: Path, files: Mapping[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


def v2(limit: object, usage: int, cache: int = 0, high: object = "max") -> dict[str, object]:
    stat = f"anon 1\nfile 5\ninactive_file {cache}\nactive_file 3"
    return {"memory.max": limit, "memory.high": high, "memory.current": usage, "memory.stat": stat}


def v1(limit: object, usage: int, cache: int = 0) -> dict[str, object]:
    stat = f"cache 1\ninactive_file 7\ntotal_inactive_file {cache}"
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": usage, "memory.stat": stat}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        (v2(8 * GIB, 3 * GIB), 5 * GIB),
        (v2(8 * GIB, 7 * GIB, cache=4 * GIB), 5 * GIB),  # pages that the kernel drops first
        (v2("max", 3 * GIB), 64 * GIB),
        (v2(8 * GIB, 3 * GIB, high=4 * GIB), 1 * GIB),  # from where the group is slowed down
        (v2(8 * GIB, 9 * GIB), 0),
        (v2(512 * GIB, 3 * GIB), 64 * GIB),
        ({}, 64 * GIB),  # the root group has no limits
    ],
)
def test_a_container_of_version_2_is_at_the_root_of_its_mount(
    tmp_path: Path, files: dict[str, object], free: int
) -> None:
    group(tmp_path / "mount", files)
    assert free_memory(proc(tmp_path, "0::/\n", V2_MOUNT.format(tmp_path / "mount"))) == free


def test_the_tightest_group_on_the_way_up_counts(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    group(mount / "user.slice" / "job.scope", v2("max", 1 * GIB))
    group(mount / "user.slice", v2(6 * GIB, 4 * GIB))
    group(mount / "other.slice", v2(1 * GIB, 1 * GIB))
    group(mount, {})
    assert free_memory(proc(tmp_path, "0::/user.slice/job.scope\n", V2_MOUNT.format(mount))) == 2 * GIB


@pytest.mark.parametrize(
    ("root", "own", "limited"),
    [
        ("/docker/abc", "/docker/abc", ""),  # a container that sees its own group alone
        ("/", "/slurm/job_7/step_0", "slurm/job_7"),  # a job on a node
        ("/", "/docker/abc", ""),  # a path that the mount does not show: what it shows is the container's
    ],
)
def test_a_limit_of_version_1_counts(tmp_path: Path, root: str, own: str, limited: str) -> None:
    mount = tmp_path / "mount"
    group(mount, v1(UNLIMITED_V1, 30 * GIB))
    group(mount / limited, v1(10 * GIB, 9 * GIB, cache=2 * GIB))
    line = f"40 22 0:33 {root} {mount} rw shared:12 - cgroup cgroup rw,memory"
    found = proc(tmp_path, f"5:cpu,cpuacct:/elsewhere\n4:memory:{own}\n0::/\n", line)
    assert free_memory(found) == 3 * GIB


def test_blanks_in_a_mount_and_other_mounts_do_not_matter(tmp_path: Path) -> None:
    mount = tmp_path / "a b"
    group(mount, v2(2 * GIB, 1 * GIB))
    group(tmp_path / "cpu", v1(1, 1))
    cpu = f"40 22 0:33 / {tmp_path / 'cpu'} rw - cgroup cgroup rw,cpu,cpuacct"
    found = proc(tmp_path, "0::/\n3:cpu,cpuacct:/\n", cpu, V2_MOUNT.format(mount).replace("a b", "a\\040b"), "odd line")
    assert free_memory(found) == 1 * GIB


def test_without_control_groups_it_is_the_machine_s(tmp_path: Path) -> None:
    assert free_memory(tmp_path / "nothing") == 64 * GIB


def test_the_checkpointing_rule_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "free_memory", lambda: 12345)
    import torch

    assert activations._free(torch.device("cpu")) == 12345
    assert Path("/proc/self") == memory.PROC
