from __future__ import annotations

import math

import pytest
import torch

from maskclip_bench.modeling.masking import (
    RECTANGLES,
    PatchMask,
    block_mask,
    choose_words,
    coarse_mask,
    draw_mask,
    num_hidden,
    random_mask,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_consistent(mask: PatchMask, *, hidden: int) -> None:
    assert (mask.hidden.sum(1) == hidden).all()
    for row, visible, masked in zip(mask.hidden, mask.visible_ids, mask.hidden_ids, strict=True):
        assert visible.tolist() == (~row).nonzero().squeeze(1).tolist()
        assert masked.tolist() == row.nonzero().squeeze(1).tolist()


def test_random_mask() -> None:
    mask = random_mask(50, 196, 0.75, seeded())
    assert_consistent(mask, hidden=147)
    assert mask.hidden.float().mean(0).std() < 0.12  # every patch has the same chance
    assert torch.equal(mask.hidden, random_mask(50, 196, 0.75, seeded()).hidden)
    assert not torch.equal(mask.hidden, random_mask(50, 196, 0.75, seeded(1)).hidden)
    assert mask.to(torch.device("cpu")) is mask


@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.75, 0.95])
def test_block_mask(ratio: float) -> None:
    mask = block_mask(10, (14, 14), ratio, seeded())
    assert_consistent(mask, hidden=num_hidden(196, ratio))
    assert torch.equal(mask.hidden, block_mask(10, (14, 14), ratio, seeded()).hidden)


def test_block_mask__is_made_of_blocks() -> None:
    def touching(hidden: torch.Tensor) -> float:
        grid = hidden.view(-1, 14, 14)
        return float((grid[:, :, 1:] & grid[:, :, :-1]).sum() / grid.sum())

    blocks = block_mask(10, (14, 14), 0.4, seeded()).hidden
    scattered = random_mask(10, 196, 0.4, seeded()).hidden
    assert touching(blocks) > touching(scattered) + 0.2


@pytest.mark.parametrize(("grid", "ratio"), [((14, 14), 0.75), ((3, 5), 0.4), ((6, 4), 0.9)])
def test_block_mask__equals_the_plain_loop(grid: tuple[int, int], ratio: float) -> None:
    height, width = grid
    generator = seeded()
    firsts = torch.rand(6, RECTANGLES, 4, generator=generator).tolist()
    expected = []
    for first in firsts:
        hidden, draws = torch.zeros(grid, dtype=torch.bool), list(first)
        missing = num_hidden(height * width, ratio)
        while missing:
            if not draws:
                draws = torch.rand(RECTANGLES, 4, generator=generator).tolist()
            draw = draws.pop(0)
            area = 4 + draw[0] * max(0, missing - 4)
            aspect = math.exp(math.log(0.3) * (1 - 2 * draw[1]))
            rows = min(height, max(1, round(math.sqrt(area * aspect))))
            columns = min(width, max(1, round(math.sqrt(area / aspect))))
            top, left = int(draw[2] * (height - rows + 1)), int(draw[3] * (width - columns + 1))
            window = hidden[top : top + rows, left : left + columns]
            fresh = (~window).nonzero()[:missing]
            window[fresh[:, 0], fresh[:, 1]] = True
            missing -= len(fresh)
        expected.append(hidden.flatten())
    assert torch.equal(block_mask(6, grid, ratio, seeded()).hidden, torch.stack(expected))


def test_coarse_mask__hides_whole_cells() -> None:
    mask = coarse_mask(4, (6, 8), 0.5, 2, seeded())
    assert_consistent(mask, hidden=24)
    cells = mask.hidden.view(4, 3, 2, 4, 2).transpose(2, 3).flatten(3)
    assert (cells.all(-1) | ~cells.any(-1)).all()


def test_draw_mask() -> None:
    for kind, plain in (
        ("random", random_mask(2, 36, 0.5, seeded())),
        ("block", block_mask(2, (6, 6), 0.5, seeded())),
    ):
        assert torch.equal(draw_mask(kind, 2, (6, 6), 0.5, seeded()).hidden, plain.hidden)


def test_num_hidden__leaves_something_on_both_sides() -> None:
    assert num_hidden(4, 0.01) == 1
    assert num_hidden(4, 0.99) == 3
    assert num_hidden(196, 0.75) == 147


def test_choose_words__never_start_end_or_padding() -> None:
    captions = torch.zeros(200, 22, dtype=torch.int64)
    lengths = torch.randint(3, 23, (200,), generator=seeded())
    for row, length in zip(captions, lengths, strict=True):
        row[1 : length - 1] = 5
        row[0], row[length - 1] = 98, 99
    chosen = choose_words(captions, 0.2, seeded())
    assert not chosen[captions != 5].any()
    words = lengths - 2
    expected = (words * 0.2).round().clamp(min=1)
    assert torch.equal(chosen.sum(1), expected.long())
    assert not torch.equal(chosen, choose_words(captions, 0.2, seeded(1)))


def test_choose_words__empty_caption() -> None:
    captions = torch.tensor([[98, 99, 0], [98, 5, 99]])
    assert choose_words(captions, 0.2, seeded()).tolist() == [[False] * 3, [False, True, False]]
