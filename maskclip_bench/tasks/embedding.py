"""Features of images and texts as a file: pooled, joint, class and patch features, of any layer.

| kind | what | shape |
| --- | --- | --- |
| pooled | what probes and kNN read, before any projection | [N, D] |
| joint | in the space of the texts, L2-normalised | [N, P] |
| class | the class token after a block | [N, D] |
| patch | the patch tokens after a block | [N, G, D] |
| text | embeddings of texts, L2-normalised | [T, P] |

`layer` is a block, 0 the first and -1 the last; tokens of every layer pass the trunk's final norm,
as `forward_intermediates` of timm and open_clip does on request. N images, G patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from maskclip_bench import storage
from maskclip_bench.errors import ConfigError
from maskclip_bench.progress import Progress, no_progress
from maskclip_bench.tasks.features import IMAGE_BATCH, TEXT_BATCH, PassOptions, prepared_batches

if TYPE_CHECKING:
    from maskclip_bench.backbones import Backbone
    from maskclip_bench.data.readers import Dataset

Kind = Literal["pooled", "joint", "class", "patch", "text"]
KINDS: tuple[str, ...] = get_args(Kind)
IMAGE_KINDS = tuple(kind for kind in KINDS if kind != "text")
TOKENS = ("class", "patch")
SUFFIXES = (".parquet", ".safetensors")


def embed_images(
    backbone: Backbone,
    dataset: Dataset,
    kind: Kind = "pooled",
    *,
    layer: int = -1,
    progress: Progress = no_progress,
    options: PassOptions | None = None,
) -> Iterator[Tensor]:
    """Features of all images, a batch at a time, float32 on the CPU.

    Args:
        backbone: The model.
        dataset: The images.
        kind: See the table above.
        layer: Block of class and patch tokens.
        progress: Told (stage, done, total).
        options: Batches and workers.

    Raises:
        ConfigError: The model gives no such feature, or has no such layer.
        DataError: An image cannot be read.
        NonFiniteError: Features are NaN or infinite.
    """
    check_kind(backbone, kind, layer)
    options = options or PassOptions(image_batch=IMAGE_BATCH)
    done = 0
    for images in prepared_batches(backbone, dataset, 0, progress, options):
        if kind == "patch" and layer == -1:
            values: Tensor | None = backbone.patch_tokens(images)  # also of models that are no ViT
        elif kind in TOKENS:
            tokens = backbone.tokens_at(images, layer)  # (class [B, D] or None, patches [B, G, D])
            values = tokens[1] if kind == "patch" else tokens[0]
        else:
            outputs = backbone.image_outputs(images)
            values = outputs["joint" if kind == "joint" else "backbone"]
        if values is None:
            raise ConfigError(f"{backbone.name} has no class token. Use kind patch or pooled.")
        done += len(images)
        progress(f"{kind} features of {dataset.split}", done, len(dataset))
        yield values.cpu()


def embed_texts(
    backbone: Backbone, texts: Sequence[str], *, progress: Progress = no_progress
) -> Tensor:
    """Embeddings of texts in their order, [T, P], L2-normalised.

    Raises:
        ConfigError: The model reads no texts.
    """
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    parts = []
    for start in range(0, len(order), TEXT_BATCH):
        chosen = order[start : start + TEXT_BATCH]
        parts.append(backbone.encode_text([texts[index] for index in chosen]).cpu())
        progress("texts", start + len(chosen), len(order))
    rows = torch.empty(len(order), dtype=torch.int64)
    rows[torch.tensor(order, dtype=torch.int64)] = torch.arange(len(order))
    return torch.cat(parts)[rows] if parts else torch.empty(0, 0)


def check_kind(backbone: Backbone, kind: str, layer: int) -> None:
    """Refuse a feature that a model does not have.

    Raises:
        ConfigError: There is none of that kind, or at that layer.
    """
    if kind not in KINDS:
        raise ConfigError(f"No features of kind {kind!r}. Choose one of: {', '.join(KINDS)}.")
    if kind in ("joint", "text") and not backbone.has_text:
        raise ConfigError(f"{backbone.name} has no text tower, so it has no {kind} features.")
    if layer != -1 and kind not in TOKENS:
        raise ConfigError(
            f"{kind} features are of the whole model; --layer is for class and patch."
        )


def write_embeddings(
    path: Path,
    batches: Iterator[Tensor],
    names: Sequence[str],
    columns: dict[str, Sequence[Any]],
    note: dict[str, str],
) -> tuple[int, ...]:
    """Write features and the names of their samples -> shape of the whole.

    Parquet has one row a sample: `sample_id`, `columns`, and `features` as a list of floats
    (patches one after another; their shape is in the metadata). safetensors has the tensor
    `features`, and the names in its metadata.

    Args:
        path: Ends with .parquet or .safetensors.
        batches: Features of the samples in their order.
        names: Of the samples.
        columns: Further columns, e.g. labels; Parquet only.
        note: What they are; goes into the metadata.

    Raises:
        ConfigError: The path ends with neither.
        StorageError: The disk refused.
    """
    if path.suffix == ".parquet":
        return _write_parquet(path, batches, names, columns, note)
    if path.suffix == ".safetensors":
        return _write_safetensors(path, batches, names, note)
    raise ConfigError(f"{path}: features go to a file that ends with {' or '.join(SUFFIXES)}.")


def _write_parquet(
    path: Path,
    batches: Iterator[Tensor],
    names: Sequence[str],
    columns: dict[str, Sequence[Any]],
    note: dict[str, str],
) -> tuple[int, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    done, writer = 0, None
    shape: tuple[int, ...] = ()
    with storage.atomic_file(path) as temporary:
        try:
            for features in batches:
                number, flat = len(features), features.flatten(1)
                shape = tuple(features.shape[1:])
                values = pa.array(flat.reshape(-1).numpy(), pa.float32())
                part = {
                    "sample_id": pa.array(names[done : done + number], pa.string()),
                    **{
                        name: pa.array(list(column[done : done + number]))
                        for name, column in columns.items()
                    },
                    "features": pa.FixedSizeListArray.from_arrays(values, flat.shape[1]),
                }
                table = pa.table(part)
                if writer is None:
                    told = {**note, "shape": "x".join(map(str, shape))}
                    schema = table.schema.with_metadata(told)
                    writer = pq.ParquetWriter(temporary, schema)
                writer.write_table(table.cast(writer.schema))
                done += number
        finally:
            if writer is not None:
                writer.close()
    return (done, *shape)


def _write_safetensors(
    path: Path, batches: Iterator[Tensor], names: Sequence[str], note: dict[str, str]
) -> tuple[int, ...]:
    import json

    from safetensors.torch import save_file

    whole = torch.cat(list(batches)).contiguous()
    with storage.atomic_file(path) as temporary:
        metadata = {**note, "sample_ids": json.dumps(list(names))}
        save_file({"features": whole}, str(temporary), metadata)
    return tuple(whole.shape)
