"""Names of 0.1.0, kept for one version; they are in `data.pair_config` now."""

from maskclip_bench.data.pair_config import *  # noqa: F403
