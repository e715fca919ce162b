"""The environment of a search's processes. They inherit the changes that the driver makes to its own."""

import ipaddress
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import psutil

ENVIRONMENT = {
    # The patched print makes dill inspect sources and floods the workers' logs.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}
"""Of every process of a search."""
WORKER_ENVIRONMENT = ENVIRONMENT | {
    # Ray Train polls reports and health this often; the default of 2 s also delays the news of a dead worker.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # It reports nodes that will be drained to a training loop, by a process of its own; this loop does not use it.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # A group may wait for a node that comes tomorrow: the watchdog reports it, and no trial is lost.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(10**7),
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
DRIVER_ENVIRONMENT = ENVIRONMENT | {
    # Nothing that Tune writes is ever read again: the study has everything.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),
    "TUNE_WARN_THRESHOLD_S": str(10**6),
    "RAY_AIR_NEW_OUTPUT": "0",
    # Of a cluster that is started here: prestarted workers lack our environment, so they would stay unused.
    "RAY_prestart_worker_first_driver": "0",
}
LOOPBACK = ("localhost", "127.0.0.1", "::1")
EVERY_HOST = "*"


@contextmanager
def changed_environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Change variables of this process, and of those that it starts, inside the block; then restore them."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def reach_directly(*hosts: str) -> None:
    """Use no proxy for this machine's own addresses and for `hosts`, in this process and in those that it starts.

    A proxy of a company or a cluster reaches neither Ray's dashboard nor a server on this machine.
    """
    os.environ.update(past_proxies(os.environ, [*own_hosts(), *hosts]))


def past_proxies(environment: Mapping[str, str], hosts: Iterable[str]) -> dict[str, str]:
    """`no_proxy` with hosts added, in both spellings, since libraries differ in which one they read.

    Args:
        environment: Has the present values.
        hosts: Names and addresses, without ports.
    """
    changes = {}
    for name, other in (("no_proxy", "NO_PROXY"), ("NO_PROXY", "no_proxy")):
        listed = environment.get(name) or environment.get(other) or ""
        kept = [entry for entry in (part.strip() for part in listed.split(",")) if entry]
        # Libraries know the asterisk only where it stands alone.
        changes[name] = EVERY_HOST if EVERY_HOST in kept else ",".join(dict.fromkeys([*kept, *hosts]))
    return changes


def own_hosts() -> list[str]:
    """Names and addresses at which this machine reaches itself."""
    return list(dict.fromkeys([*LOOPBACK, socket.gethostname(), *own_addresses()]))


def own_addresses() -> list[str]:
    """Addresses at which other machines may reach this one."""
    families = (socket.AF_INET, socket.AF_INET6)
    found = [
        entry.address for entries in psutil.net_if_addrs().values() for entry in entries if entry.family in families
    ]
    return [address for address in found if not ("%" in address or ipaddress.ip_address(address).is_loopback)]
