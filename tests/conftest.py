"""For all tests: no user's settings, no network, one thread."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from maskclip_bench import content_hash, data_files, runtime

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Hugging Face libraries must not try to reach their servers from a test.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True, scope="session")
def _no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hashes that tests remember go to a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(content_hash.CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see the shipped declarations and the default workspace, whatever the shell says."""
    for name in (
        data_files.CATALOGUE_VARIABLE,
        runtime.WORKSPACE_VARIABLE,
        runtime.DATA_VARIABLE,
    ):
        monkeypatch.delenv(name, raising=False)
