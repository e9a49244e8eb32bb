"""Vision and text decoder, positions, pixels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskclip_bench.modeling.decoders import (
    TextDecoder,
    VisionDecoder,
    decoder_targets,
    normalized_patches,
    pixel_patches,
    sine_positions,
)
from maskclip_bench.modeling.masking import random_mask
from maskclip_bench.modeling.packing import PackedLayout


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
    for shape in [(2, 3, 8, 12), (1, 1, 4, 4), (2, 3, 11, 7)]:  # the last: pixels left over
        images = torch.randn(shape)
        expected = nn.functional.unfold(images, 4, stride=4).transpose(1, 2)
        assert torch.equal(pixel_patches(images, 4), expected)
    images = torch.randn(2, 3, 8, 12)
    patches = pixel_patches(images, 4)
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
