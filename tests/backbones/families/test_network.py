"""A host that cannot be reached is said at once."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from maskclip_bench.backbones import load_backbone, resolve_backbone
from maskclip_bench.backbones.families.network import HUB, hub_url, refuse_offline
from maskclip_bench.errors import CheckpointError
from maskclip_bench.runtime import Workspace

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Hosts that somebody tried to reach; none answers."""
    hosts: list[tuple[str, int]] = []

    def refuse(address: tuple[str, int], **options: Any) -> None:
        hosts.append(address)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", refuse)
    return hosts


def test_refuse_offline__names_the_host_and_what_to_do(asked: list[tuple[str, int]]) -> None:
    with pytest.raises(CheckpointError, match=r"mine: .*huggingface\.co.*cannot be reached.*copy"):
        refuse_offline("mine", HUB)
    assert asked == [("huggingface.co", 443)]


def test_refuse_offline__a_host_that_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        refuse_offline("mine", f"http://127.0.0.1:{port}/weights")
    with pytest.raises(CheckpointError, match=r"127\.0\.0\.1"):
        refuse_offline("mine", f"http://127.0.0.1:{port}")


def test_refuse_offline__behind_a_proxy_the_library_tries(
    asked: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    refuse_offline("mine", HUB)
    refuse_offline("mine", "")
    assert asked == []


def test_hub_url__a_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_url() == HUB
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    assert hub_url() == "https://mirror.example"


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224.augreg_in21k", "open_clip:RN50/cc12m"])
def test_load__asks_once_and_stops(name: str, asked: list[tuple[str, int]], tmp_path: Any) -> None:
    with pytest.raises(CheckpointError, match="cannot be reached"):
        load_backbone(resolve_backbone(name), workspace=Workspace.open(tmp_path))
    assert len(asked) == 1
