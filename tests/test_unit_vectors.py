"""Vectors of length 1: as torch makes them, and where torch gives up."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from maskclip_bench.unit_vectors import unit_vectors


def test_usual_vectors__are_torchs_to_the_last_bit() -> None:
    vectors = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    for scale in (1e-9, 1.0, 1e15):
        assert torch.equal(unit_vectors(vectors * scale), F.normalize(vectors * scale, dim=-1))


@pytest.mark.parametrize("scale", [1e-11, 1e-20, 1e-37, 1e-40])
def test_short_vectors__have_their_direction(scale: float) -> None:
    vectors = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    mixed = torch.cat([vectors[:25] * scale, vectors[25:]])
    tolerance = 1e-6 if scale > 1e-38 else 1e-4  # few bits are left below float32's smallest
    assert torch.allclose(unit_vectors(mixed), F.normalize(vectors, dim=-1), atol=tolerance)


def test_zeros__stay_zeros() -> None:
    vectors = torch.tensor([[0.0, -0.0], [3e-30, -4e-30]])
    assert unit_vectors(vectors)[0].tolist() == [0.0, 0.0]
    assert unit_vectors(vectors[None])[0, 1].tolist() == pytest.approx([0.6, -0.8])
