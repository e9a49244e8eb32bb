"""Before a download: can its host be reached? Said at once, instead of after a dozen retries."""

from __future__ import annotations

import os
import socket
import urllib.request
from urllib.parse import urlsplit

from maskclip_bench.errors import CheckpointError

HUB = "https://huggingface.co"
ENDPOINT_VARIABLE = "HF_ENDPOINT"
SECONDS = 5.0


def hub_url() -> str:
    """The hub that huggingface_hub asks: a mirror, where `HF_ENDPOINT` names one."""
    return os.environ.get(ENDPOINT_VARIABLE) or HUB


def refuse_offline(what: str, url: str) -> None:
    """Do nothing if the host of `url` answers, or if a proxy stands between.

    Args:
        what: The weights, for the message.
        url: Where they would come from.

    Raises:
        CheckpointError: The host has no address, or does not answer in `SECONDS`.
    """
    parts = urlsplit(url)
    if not parts.hostname or urllib.request.getproxies():
        return
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname, port), timeout=SECONDS).close()
    except OSError as error:
        raise CheckpointError(
            f"{what}: its weights are not in this machine's cache, and {parts.hostname}, where "
            f"they come from, cannot be reached ({error}). Run it once where there is a network, "
            f"copy that machine's cache (~/.cache/huggingface), or set {ENDPOINT_VARIABLE} to a "
            "mirror."
        ) from None
