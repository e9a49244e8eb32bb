from __future__ import annotations

import torch

from maskclip_bench.training.device_trace import DeviceTrace

CPU = torch.device("cpu")


def trace() -> tuple[DeviceTrace, torch.Tensor]:
    traced, weight = DeviceTrace(), torch.rand(4, requires_grad=True)
    traced.on_device([weight])
    return traced, weight


def test_device_trace__reads() -> None:
    """Values that the host looks at, of the device and of what is computed from it."""
    traced, weight = trace()
    with traced:
        (weight * 2).sum().backward()
        product = (weight * 2).detach()
        float(product.sum())
        bool(product.isfinite().all())
        product.tolist()
        product.nonzero()
        product[product > 0.5]
    assert sorted(line.split()[-1] for line in traced.reads.elements()) == [
        "_local_scalar_dense",
        "_local_scalar_dense",
        "index",
        "nonzero",
        "tolist",
    ]
    assert sum(traced.copies.values()) == 0


def test_device_trace__copies() -> None:
    """What is brought to the device, with or without saying so; what is made there is none."""
    traced, weight = trace()
    images = torch.rand(4)
    traced.on_host([images])
    with traced, torch.no_grad():
        moved = images.to(CPU, non_blocking=True)
        weight + moved
        weight + torch.ones(4, device=CPU)
        assert sum(traced.copies.values()) == 1
        weight.new_tensor([1.0])
        weight + torch.arange(4)
        weight + images
    assert sum(traced.copies.values()) == 4


def test_device_trace__the_host_may_look_at_its_own() -> None:
    traced, _ = trace()
    captions = torch.randint(0, 2, (3, 4))
    traced.on_host([captions])
    with traced:
        captions.nonzero()
        captions.sum().item()
        captions.tolist()
    assert not +traced.reads
    assert not +traced.copies
    assert captions.tolist() is not None  # methods are given back
