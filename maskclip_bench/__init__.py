"""MaskCLIP (Dong et al., CVPR 2023), its baselines under one trainer, and a transfer benchmark."""

__version__ = "0.1.0"
