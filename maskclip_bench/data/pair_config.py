"""The `data` part of a pretraining recipe: where pairs come from, and how they are augmented."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from maskclip_bench.config import Declaration
from maskclip_bench.normalization import IMAGENET_MEAN, IMAGENET_STD

MAX_SAMPLES = 10**10
"""Of an epoch; the numbers of its samples alone would have 80 GB."""

RATIOS = (0.001, 1000.0)
"""Between which a crop's width over its height may be asked for."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Triple = tuple[float, float, float]


class SourceConfig(Declaration):
    """Where the image-text pairs are; paths are relative to the data root."""

    kind: Literal["webdataset", "csv", "parquet"] = "webdataset"
    """`webdataset`: tar shards. `csv`: a table with a header line (a file ending in .tsv, or
    `separator`, is tab separated). `parquet`: the same as Parquet."""

    path: str
    """Files: braces (`cc3m/{00000..00331}.tar`), globs (`cc3m/*.tar`), several joined by `::`."""

    weights: tuple[Annotated[float, Field(ge=1e-6, le=1e6)], ...] = ()
    """One weight for each part of `path` between `::`, as a list or as `1::2`; how often a sample
    of that part is drawn relative to the others. Needs `sampling: resampled`."""

    sampling: Literal["exact", "resampled"] = "exact"
    """`exact`: an epoch shows every sample once (less than one global batch is left over).
    `resampled`: samples are drawn with replacement, by `weights`."""

    epoch_samples: Annotated[int, Field(gt=0, le=MAX_SAMPLES)] | None = None
    """Samples an epoch draws with `sampling: resampled`; by default as many as there are."""

    shuffle_window: Annotated[int, Field(gt=0)] | None = None
    """Shuffle within windows of this many samples, made of randomly chosen runs of neighbours, for
    disks that are slow at random reads. By default the whole set is shuffled."""

    image_field: str = "image"
    """Column of the image path (csv, parquet). In shards, images are found by their suffix."""

    archive_field: str | None = None
    """Column naming the zip archive that holds the image; the image path is then its member."""

    images_root: str = ""
    """Folder that image and archive paths of a table are relative to."""

    caption_fields: tuple[str, ...] = ("captions",)
    """Columns (csv, parquet) or keys of the sample's JSON (webdataset) with the captions; each a
    text or a list of texts. `txt` names the `.txt` member of a sample in a shard."""

    separator: str | None = None
    """Column separator of a csv, one character; by default a comma, or a tab for .tsv files."""

    quoting: bool | None = None
    """Whether `"` quotes a field of a csv (`""` inside it is one quote). By default off where a
    tab separates the columns, since captions hold single quotation marks, and on elsewhere."""

    captions: Literal["first", "random", "random_of_fields"] = "random"
    """Which caption a sample shows: the first; any, with equal chances; or a random field (SLIP:
    title or description, `facebookresearch/SLIP` datasets.py) and then any caption of it."""

    empty_captions: Literal["drop", "keep"] = "drop"
    """`drop`: empty captions are not drawn, and an image with no other is skipped and counted.
    `keep`: an empty caption is a caption, as in SLIP's code."""

    max_bad_fraction: Fraction = 0.01
    """Share of an epoch's samples that may be broken before the run stops."""

    @field_validator("weights", mode="before")
    @classmethod
    def _weights_from_text(cls, value: object) -> object:
        return tuple(value.split("::")) if isinstance(value, str) else value

    @field_validator("caption_fields", mode="before")
    @classmethod
    def _fields_from_text(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _names_are_names(self) -> SourceConfig:
        if not self.caption_fields:
            raise ValueError("caption_fields is empty: name at least one field with captions")
        named = {
            "path, between `::`": self.path.split("::"),
            "caption_fields": self.caption_fields,
            "image_field": [self.image_field],
            "archive_field": [] if self.archive_field is None else [self.archive_field],
        }
        for where, names in named.items():
            if any(not name.strip() for name in names):
                raise ValueError(f"{where}: an empty name; write the name, or leave it out")
        if "\0" in self.path + self.images_root:
            raise ValueError("path or images_root has a NUL character, which no file's name has")
        return self

    @model_validator(mode="after")
    def _weights_fit(self) -> SourceConfig:
        if self.sampling == "exact" and (self.weights or self.epoch_samples):
            raise ValueError(
                "weights and epoch_samples need `sampling: resampled`; an exact epoch shows every "
                "sample once"
            )
        num_parts = len(self.path.split("::"))
        if self.weights and len(self.weights) != num_parts:
            raise ValueError(
                f"weights has {len(self.weights)} entries, and path has {num_parts} parts between "
                "`::`; give one weight for each part"
            )
        return self


class AugmentConfig(Declaration):
    """Crops (on the CPU) and colour work (on the device)."""

    crop_scale: tuple[Fraction, Fraction] = (0.5, 1.0)
    """Area of the contrastive view's random crop, as a share of the image. SLIP: (0.5, 1)."""

    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a random crop, for all views. torchvision's default."""

    flip: Fraction = 0.0
    """Chance that the contrastive view is mirrored. SLIP does not mirror it."""

    ssl_crop_scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Area of the crops of the self-supervised views. SLIP: (0.08, 1)."""

    ssl_flip: Fraction = 0.5
    """Chance that a self-supervised view is mirrored."""

    ssl_jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Largest change of brightness, contrast, saturation and hue. SLIP: (0.4, 0.4, 0.4, 0.1)."""

    ssl_jitter_probability: Fraction = 0.8
    """Chance of colour jitter. SLIP: 0.8."""

    ssl_grayscale: Fraction = 0.2
    """Chance that a self-supervised view loses its colour. SLIP: 0.2."""

    ssl_blur: Fraction = 0.5
    """Chance of Gaussian blur. SLIP: 0.5."""

    ssl_blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Standard deviation of the blur in pixels of the crop. SLIP: (0.1, 2) at 224 pixels."""

    mean: Triple = IMAGENET_MEAN
    """Subtracted from channels in 0..1. SLIP uses ImageNet's, not CLIP's."""

    std: Triple = IMAGENET_STD
    """Channels are divided by it after the mean is subtracted."""

    @model_validator(mode="after")
    def _ranges_in_order(self) -> AugmentConfig:
        for name in ("crop_scale", "crop_ratio", "ssl_crop_scale", "ssl_blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} should be (low, high) with 0 < low <= high")
        low, high = self.crop_ratio
        if low < RATIOS[0] or high > RATIOS[1]:
            raise ValueError(
                f"crop_ratio is {low:g} to {high:g}, width over height; it should be within "
                f"{RATIOS[0]:g} to {RATIOS[1]:g}"
            )
        if any(value <= 0 for value in self.std):
            raise ValueError("std has a value that is not positive; channels are divided by it")
        if any(not 0 <= value <= 1 for value in self.ssl_jitter) or self.ssl_jitter[3] > 0.5:
            raise ValueError("ssl_jitter should be in 0..1, its last value (hue) in 0..0.5")
        return self


class DataConfig(Declaration):
    """The `data` part of a recipe."""

    source: SourceConfig
    """Where the pairs come from."""

    augment: AugmentConfig = AugmentConfig()
    """How images are cropped and coloured."""

    held: Literal["none", "device"] = Field(default="none", json_schema_extra={"neutral": "none"})
    """`device`: decode all images once and keep them, with their captions, in the memory of the
    device that trains (each process all of them); batches are the same to the bit. For small sets
    that are seen many times: half of the free memory may be taken. Workers only draw then."""

    num_workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Processes that decode, per rank; 0 decodes in the training process. The batches are the
    same with any number."""

    prefetch_batches: Annotated[int, Field(gt=0, le=1024)] = 4
    """Parts of a batch, of at most 64 samples, that each worker prepares ahead in shared memory."""
