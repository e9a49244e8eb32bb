from __future__ import annotations

from maskclip_bench.data.demo.sizes import DemoSizes
from maskclip_bench.data.demo.world import world_fingerprint


def test_values__a_slice_that_a_world_lacks_changes_no_hash() -> None:
    assert "objects_val_small" not in DemoSizes().values()
    assert "objects_tune" in DemoSizes(objects_tune=0).values()
    assert DemoSizes(objects_val_small=2).values()["objects_val_small"] == 2


def test_fingerprint__of_the_demo_world_is_that_of_its_records() -> None:
    assert world_fingerprint(DemoSizes(), 0) == "45b7eb45d6624647"
    others = {
        world_fingerprint(DemoSizes(), 1),
        world_fingerprint(DemoSizes(), 0, ("noto",)),
        world_fingerprint(DemoSizes(objects_val_small=1), 0),
    }
    assert len(others) == 3 and "45b7eb45d6624647" not in others
