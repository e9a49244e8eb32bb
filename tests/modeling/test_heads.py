"""Decoders, the quantizer, SimCLR's head."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskclip_bench.modeling.blocks import PackedLayout
from maskclip_bench.modeling.decoders import (
    TextDecoder,
    VisionDecoder,
    decoder_targets,
    normalized_patches,
    pixel_patches,
    sine_positions,
)
from maskclip_bench.modeling.masking import random_mask
from maskclip_bench.modeling.projection_head import GlobalBatchNorm, SimCLRHead
from maskclip_bench.pretrain.methods.parts import online_quantizer as distillation_head
from maskclip_bench.pretrain.methods.parts.online_quantizer import (
    CodewordHead,
    codeword_cross_entropy,
)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("fixed_positions", [True, False])
def test_vision_decoder__equals_plain(depth: int, fixed_positions: bool) -> None:
    torch.manual_seed(0)
    decoder = VisionDecoder(
        encoder_dim=8, grid_size=(3, 4), embed_dim=16, depth=depth, num_heads=2, output_dim=5,
        fixed_positions=fixed_positions,
    )  # fmt: skip
    mask = random_mask(2, 12, 0.75, torch.Generator().manual_seed(0))
    tokens = torch.randn(2, 1 + 3, 8)
    # The plain version puts every patch at its place in the grid, as MAE does.
    rows = []
    for token, hidden in zip(tokens, mask.hidden, strict=True):
        embedded = decoder.embed(token)
        grid = decoder.mask_token.expand(12, -1).clone()
        grid[~hidden] = embedded[1:]
        row = torch.cat([embedded[:1], grid + decoder.pos_embed])[None]
        for block in decoder.blocks:
            row = block(row)
        rows.append(decoder.head(decoder.norm(row))[0, 1:])
    plain = torch.stack(rows)
    ours = decoder(tokens, mask, num_prefix=1)
    assert ours.shape == (2, 9, 5)
    torch.testing.assert_close(ours, decoder_targets(plain, mask), rtol=1e-5, atol=1e-5)
    everything = decoder(tokens, mask, num_prefix=1, predict_all=True)
    expected = decoder_targets(plain, mask, predict_all=True)
    torch.testing.assert_close(everything, expected, rtol=1e-5, atol=1e-5)


def test_sine_positions() -> None:
    positions = sine_positions((2, 3), 8)
    assert positions.shape == (6, 8)
    assert positions[0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    torch.testing.assert_close(positions[4, 0], torch.tensor(1.0).sin())  # column 1
    torch.testing.assert_close(positions[5, 1], torch.tensor(2 * 10000**-0.5).sin())  # column 2
    torch.testing.assert_close(positions[4, 4], torch.tensor(1.0).sin())  # row 1
    assert len(positions.unique(dim=0)) == 6
    assert sine_positions((2, 2), 10)[:, 8:].abs().sum() == 0


def test_pixel_patches() -> None:
    images = torch.randn(2, 3, 8, 12)
    patches = pixel_patches(images, 4)
    assert patches.shape == (2, 6, 48)
    torch.testing.assert_close(patches[1, 4], images[1, :, 4:8, 4:8].flatten())
    normed = normalized_patches(patches)
    torch.testing.assert_close(normed.mean(-1), torch.zeros(2, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.var(-1), torch.ones(2, 6), atol=1e-3, rtol=0)


def test_text_decoder__does_not_see_padding(captions: Tensor) -> None:
    torch.manual_seed(0)
    decoder = TextDecoder(width=8, depth=2, num_heads=2)
    layout = PackedLayout.of(captions)
    hidden = torch.randn(17, 8)
    together = decoder(hidden, layout)
    for number, part in enumerate(hidden.split([5, 9, 3])):
        alone = PackedLayout.of(captions[number : number + 1, : len(part)])
        torch.testing.assert_close(
            decoder(part, alone), together.split([5, 9, 3])[number], rtol=1e-5, atol=1e-5
        )
    # Bidirectional: the last word changes the first one's state.
    hidden[4, 0] += 1
    assert not torch.allclose(decoder(hidden, layout)[0], together[0])


def test_text_decoder__of_depth_0_changes_nothing(captions: Tensor) -> None:
    hidden = torch.randn(17, 8)
    decoder = TextDecoder(width=8, depth=0, num_heads=2)
    assert decoder(hidden, PackedLayout.of(captions)) is hidden
    assert list(decoder.parameters()) == []


def test_codeword_head__gives_cosines() -> None:
    head = CodewordHead(input_dim=6, hidden_dim=8, bottleneck_dim=4, num_codewords=10)
    similarities = head(torch.randn(2, 3, 6))
    assert similarities.shape == (2, 3, 10)
    assert similarities.abs().max() <= 1 + 1e-6
    directions = head.directions(torch.randn(5, 6))
    torch.testing.assert_close(  # linear: what the centre of the teacher's assignments relies on
        head.similarities(directions.mean(0)), head.similarities(directions).mean(0)
    )
    assert [type(m) for m in head.mlp] == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]


@pytest.mark.parametrize("num_rows", [0, 2, 100])
def test_codeword_cross_entropy__equals_plain(
    num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(distillation_head.BLOCK_ELEMENTS, "cpu", 7 * num_rows)  # 0: one at a time
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 3, 7, generator=generator).requires_grad_()
    teacher = torch.randn(2, 3, 7, generator=generator).requires_grad_()
    center = torch.randn(7, generator=generator)
    ours = codeword_cross_entropy(student, teacher, center, student_temp=0.1, teacher_temp=0.04)
    target = ((teacher - center) / 0.04).softmax(-1).detach()
    plain = -(target * (student / 0.1).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(ours, plain)
    (found,) = torch.autograd.grad(3 * ours, student)
    (expected,) = torch.autograd.grad(3 * plain, student)
    torch.testing.assert_close(found, expected)
    assert teacher.grad is None


def test_simclr_head__is_slip_in_one_process() -> None:
    torch.manual_seed(0)
    head = SimCLRHead(6, 16, 4)
    layers = [type(layer) for layer in head.layers]
    assert layers == [
        nn.Linear, GlobalBatchNorm, nn.ReLU, nn.Linear, GlobalBatchNorm, nn.ReLU, nn.Linear,
    ]  # fmt: skip
    plain = nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.BatchNorm1d(16),
        nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip
    plain.load_state_dict(head.layers.state_dict())
    pooled = torch.randn(5, 6)
    torch.testing.assert_close(head(pooled), F.normalize(plain(pooled), dim=-1))
