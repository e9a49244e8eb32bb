"""How many scenes a demo world has."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from maskclip_bench.data.demo.slices import SLICES


@dataclass(frozen=True)
class DemoSizes:
    """How many scenes each split has; the defaults are the demo world of the benchmark.

    Attributes:
        pretrain: Image-text pairs.
        shard: Pairs in one webdataset shard.
        objects_train: Images per class, likewise the next three.
        objects_val: Of drawings that training has, new scenes.
        objects_val_ood: Of the held-out vendor.
        objects_tune: For choosing hyperparameters; never reported.
        captions_test: Images with five captions each.
        captions_val: The same, for choosing hyperparameters.
        scenes_training: Images with semantic labels, likewise the next two.
        scenes_validation: Of drawings that training has.
        scenes_validation_ood: Of the held-out vendor.
        instances_train: Images with instance masks, likewise the next two.
        instances_val: Of drawings that training has.
        instances_val_ood: Of the held-out vendor.
        objects_val_small: As `objects_val`, small in the image; no such split with 0.
        objects_val_occluded: As `objects_val`, half of the object hidden; no such split with 0.
    """

    pretrain: int = 24_000
    shard: int = 1_000
    objects_train: int = 60
    objects_val: int = 30
    objects_val_ood: int = 30
    objects_tune: int = 10
    captions_test: int = 1_000
    captions_val: int = 300
    scenes_training: int = 700
    scenes_validation: int = 250
    scenes_validation_ood: int = 250
    instances_train: int = 600
    instances_val: int = 400
    instances_val_ood: int = 200
    objects_val_small: int = 0
    objects_val_occluded: int = 0

    def values(self) -> dict[str, int]:
        """All sizes; a slice that a world does not have is left out, and changes no hash."""
        absent = {f"objects_{split}" for split in SLICES}
        return {name: n for name, n in asdict(self).items() if n or name not in absent}
