"""Names of 0.1.0, kept for one version; they are in `tasks.protocols.segmentation` now."""

from maskclip_bench.tasks.protocols.segmentation import *  # noqa: F403
