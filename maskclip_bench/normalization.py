"""How pixels are normalized where nothing else is said: torchvision's numbers for ImageNet."""

from __future__ import annotations

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
