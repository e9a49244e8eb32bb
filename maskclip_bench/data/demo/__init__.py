"""The embedded demo world: scenes of emoji artwork in the formats of the real data sets.

Everything is drawn from a seed on first use with Pillow and NumPy, in seconds, into
`<data root>/demo/`:

| folder | format | splits |
| --- | --- | --- |
| `pretrain/` | webdataset shards of image-text pairs | `shards/` |
| `objects/` | ImageNet folders | `train`, `val`, `val_ood`, `tune` |
| `captions/` | Karpathy's JSON, five captions an image | `test`, `val` |
| `scenes/` | ADE20K: images and label PNGs | `training`, `validation`, `validation_ood` |
| `instances/` | COCO JSON | `train`, `val`, `val_ood` |

Splits named `*_ood` use the drawings of a vendor that no other split has. Numbers measured here are
about drawings; they are never compared with published ones.
"""

from __future__ import annotations

from maskclip_bench.data.demo.sheet import contact_sheet
from maskclip_bench.data.demo.sizes import DemoSizes
from maskclip_bench.data.demo.world import check_world, prepare_demo

__all__ = ["DemoSizes", "check_world", "contact_sheet", "prepare_demo"]
