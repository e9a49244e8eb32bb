"""The columns that keep what dense jobs found on each image."""

from __future__ import annotations

import numpy as np

from maskclip_bench.tasks.dense_outcomes import SplitResult, match_columns, nothing_found


def test_match_columns__image_by_image() -> None:
    arrays = {
        "sample_id": np.array(["a", "b", "c"]),
        "bbox_images": np.array([2, 0, 2]),
        "bbox_classes": np.array([0, 1, 1]),
        "bbox_scores": np.array([0.9, 0.8, 0.7]),
        "bbox_hits": np.array([1, 3, 0]),
        "bbox_ignored": np.array([0, 0, 2]),
        "bbox_objects": np.array([[0, 1], [0, 0], [1, 0]]),
        "bbox_small_hits": np.array([0, 3, 0]),
        "bbox_small_ignored": np.array([1, 0, 2]),
        "bbox_small_objects": np.array([[0, 1], [0, 0], [0, 0]]),
    }
    columns = match_columns([SplitResult("", "val", {}, arrays)])
    assert columns == {
        "box_ap.scores": [[0.8], [], [0.9, 0.7]],
        "box_ap.classes": [[1], [], [0, 1]],
        "box_ap.hits": [[3], [], [1, 0]],
        "box_ap.ignored": [[0], [], [0, 2]],
        "box_ap.objects": [[0, 1], [0, 0], [1, 0]],
        "box_ap_small.hits": [[3], [], [0, 0]],
        "box_ap_small.ignored": [[0], [], [1, 2]],
        "box_ap_small.objects": [[0, 1], [0, 0], [0, 0]],
    }


def test_match_columns__a_job_that_stored_none() -> None:
    part = SplitResult("", "val", {}, {"sample_id": np.array(["a"])})
    assert match_columns([part]) == {}


def test_nothing_found__is_an_ap_of_0() -> None:
    objects = np.array([[2, 0]])
    part = SplitResult("", "val", {}, {"sample_id": np.array(["a"]), "num_objects": objects})
    columns = match_columns([nothing_found(part)])
    assert columns["mask_ap.scores"] == [[]]
    assert columns["box_ap.objects"] == [[2, 0]]
