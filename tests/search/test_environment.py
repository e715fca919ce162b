"""Own addresses go past a proxy, however the proxy and its exceptions were named."""

import os
import socket
import urllib.request

import pytest

from tune_dlrml.cluster.environment import changed_environment, own_hosts, past_proxies

PROXIES = ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]
EXCEPTIONS = [
    {},
    {"no_proxy": ""},
    {"no_proxy": "example.org"},
    {"NO_PROXY": "example.org, .corp"},
    {"no_proxy": "localhost", "NO_PROXY": "example.org"},
    {"no_proxy": "*"},
    {"NO_PROXY": "*"},
    {"NO_PROXY": ",,"},
    {"no_proxy": "10.0.0.0/8,127.0.0.1"},
]


@pytest.fixture
def bare(monkeypatch):
    for name in [*PROXIES, "no_proxy", "NO_PROXY"]:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("exceptions", EXCEPTIONS, ids=str)
@pytest.mark.parametrize("proxy", PROXIES)
def test_no_library_asks_a_proxy_for_what_is_near_and_all_still_ask_it_for_what_was_far(bare, proxy, exceptions):
    import requests

    for name, value in {proxy: "http://127.0.0.1:9", **exceptions}.items():
        bare.setenv(name, value)
    scheme = "https" if proxy.lower().startswith("https") else "http"
    far = bool(requests.utils.get_environ_proxies(f"{scheme}://far.test/"))
    with changed_environment(past_proxies(os.environ, ["127.0.0.1", "localhost", "10.1.2.3", "head.cluster"])):
        for host in ("127.0.0.1", "localhost", "10.1.2.3", "head.cluster"):
            assert not requests.utils.get_environ_proxies(f"{scheme}://{host}:8265/api")
            assert urllib.request.proxy_bypass(f"{host}:8265")
        assert bool(requests.utils.get_environ_proxies(f"{scheme}://far.test/")) == far
        assert os.environ["no_proxy"].count("127.0.0.1") <= 1


def test_this_machine_reaches_itself_by_all_its_names():
    assert {"localhost", "127.0.0.1", "::1", socket.gethostname()} <= set(own_hosts())


def test_an_environment_is_afterwards_what_it_was(monkeypatch):
    monkeypatch.setenv("KEPT", "before")
    monkeypatch.delenv("ABSENT", raising=False)
    with pytest.raises(KeyError), changed_environment({"KEPT": "for a while", "ABSENT": "for a while"}):
        assert os.environ["KEPT"] == os.environ["ABSENT"] == "for a while"
        raise KeyError
    assert os.environ["KEPT"] == "before" and "ABSENT" not in os.environ
