from __future__ import annotations

import pytest
from tiny_methods import MODEL

from maskclip_bench.errors import ConfigError
from maskclip_bench.pretrain.methods import build_method


def test_simmim__cells_must_fit() -> None:
    for size in (12, 4, 32):
        with pytest.raises(ConfigError, match=rf"mask_patch_size {size} must be a multiple of"):
            build_method("simmim", {"mask_patch_size": size}, MODEL)
