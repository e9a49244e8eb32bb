"""Maps from memory are those that the encoder would make, whatever came before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskclip_bench.backbones.openmmlab.remembered_maps import RememberedMaps

LIMIT = 2**20


class Encoder:
    """Two levels; counts the images that it sees."""

    def __init__(self) -> None:
        self.num_images = 0

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.num_images += len(images)
        return images.mean(1, keepdim=True) * 2, images[:, :, ::2, ::2] + 1


def drawn(number: int, *, size: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(number, 3, size, size, generator=generator)


def check(remembered: RememberedMaps, encoder: Encoder, images: Tensor) -> None:
    expected = Encoder()(images)
    found = remembered(images, encoder, encoder="a")
    assert len(found) == len(expected)
    for mine, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, plain, rtol=0, atol=0)
        assert mine.is_contiguous()


def test_call__any_sequence_of_batches_is_as_without_memory() -> None:
    images = drawn(8)
    remembered, encoder = RememberedMaps(LIMIT), Encoder()
    for batch in ([0, 1, 2], [2, 3], [3, 3, 0, 5], [5], [7, 6, 7], [0, 1, 2, 3, 5, 6, 7]):
        check(remembered, encoder, images[batch])
    assert encoder.num_images == len(remembered) == 7


def test_call__what_the_caller_does_with_maps_changes_nothing() -> None:
    images = drawn(2)
    remembered, encoder = RememberedMaps(LIMIT), Encoder()
    for _ in range(3):
        for level in remembered(images, encoder, encoder="a"):
            level.zero_()
    check(remembered, encoder, images)
    assert encoder.num_images == 2


def test_call__images_changed_in_place_are_other_images() -> None:
    images = drawn(2)
    remembered, encoder = RememberedMaps(LIMIT), Encoder()
    check(remembered, encoder, images)
    images[1, 0, 0, 0] += 1
    check(remembered, encoder, images)
    check(remembered, encoder, images.flip(3))
    assert encoder.num_images == 2 + 1 + 2


def test_call__shape_and_type_tell_images_apart() -> None:
    remembered, encoder = RememberedMaps(LIMIT), Encoder()
    zeros = torch.zeros(1, 3, 4, 4)
    for images in (zeros, zeros.reshape(1, 3, 2, 8), zeros.double()):
        check(remembered, encoder, images)
    assert len(remembered) == 3


def test_call__beyond_the_limit_nothing_is_kept() -> None:
    images = drawn(4)
    one = 4 * (4 * 4 + 3 * 2 * 2)  # bytes of the two levels of an image
    remembered, encoder = RememberedMaps(2 * one + 1), Encoder()
    check(remembered, encoder, images)
    assert len(remembered) == 2
    check(remembered, encoder, images)
    check(remembered, encoder, images[[3, 0, 3]])
    assert encoder.num_images == 4 + 2 + 1


def test_call__another_encoder_has_its_own_maps() -> None:
    images = drawn(2)
    remembered, encoder = RememberedMaps(LIMIT), Encoder()
    check(remembered, encoder, images)
    doubled = remembered(images, lambda some: (2 * some,), encoder="b")
    torch.testing.assert_close(doubled[0], 2 * images, rtol=0, atol=0)
    check(remembered, encoder, images)
    assert (encoder.num_images, len(remembered)) == (2, 4)


def test_save__another_process_goes_on_with_them(tmp_path: Path) -> None:
    images, file = drawn(4), tmp_path / "maps"
    first, encoder = RememberedMaps(LIMIT, file), Encoder()
    check(first, encoder, images[:3])
    first.save()
    second = RememberedMaps(LIMIT, file)
    assert len(second) == 3
    check(second, encoder, images[[2, 3, 0]])
    assert encoder.num_images == 3 + 1
    second.save()
    assert len(RememberedMaps(LIMIT, file)) == 4


def test_save__nothing_new_writes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "maps"
    RememberedMaps(LIMIT, file).save()
    assert not file.exists()
    first = RememberedMaps(LIMIT, file)
    check(first, Encoder(), drawn(2))
    first.save()
    written = file.stat().st_mtime_ns
    second = RememberedMaps(LIMIT, file)
    check(second, Encoder(), drawn(2))
    second.save()
    assert file.stat().st_mtime_ns == written
    RememberedMaps(LIMIT).save()  # without a file


@pytest.mark.parametrize("content", [b"", b"no maps", bytes(64)])
def test_load__a_damaged_file_is_as_none(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "maps"
    file.write_bytes(content)
    remembered, encoder = RememberedMaps(LIMIT, file), Encoder()
    assert "cannot be read" in caplog.text
    check(remembered, encoder, drawn(2))
    remembered.save()
    assert len(RememberedMaps(LIMIT, file)) == encoder.num_images == 2


def test_save__maps_of_another_encoder_take_no_room_from_the_own(tmp_path: Path) -> None:
    file, images = tmp_path / "maps", drawn(3)
    one = 4 * (4 * 4 + 3 * 2 * 2)
    first = RememberedMaps(3 * one, file)
    first(images, Encoder(), encoder="another")
    first.save()
    second, encoder = RememberedMaps(3 * one, file), Encoder()
    for _ in range(2):
        check(second, encoder, images)
    assert encoder.num_images == 3
    second.save()
    third, again = RememberedMaps(3 * one, file), Encoder()
    check(third, again, images)
    assert again.num_images == 0, "the newest are handed on"
    assert len(third) == 3


def test_save__a_disk_that_refuses_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "folder").write_text("a file where a folder should be")
    remembered = RememberedMaps(LIMIT, tmp_path / "folder" / "maps")
    check(remembered, Encoder(), drawn(2))
    remembered.save()
    assert "not handed on" in caplog.text
