"""`mb.embed`: features of a model on images or texts, in memory or as a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskclip_bench.errors import ConfigError
from maskclip_bench.progress import Progress, no_progress
from maskclip_bench.runtime import Workspace, resolve_device

if TYPE_CHECKING:
    from torch import Tensor

    from maskclip_bench.backbones import Backbone
    from maskclip_bench.data.readers import Dataset
    from maskclip_bench.tasks.embedding import Kind


def embed(
    encoder: Backbone | str | Path,
    data: str | Path | None = None,
    *,
    texts: Sequence[str] | None = None,
    split: str = "test",
    kind: Kind | None = None,
    layer: int = -1,
    limit: int | None = None,
    output: str | Path | None = None,
    workspace: str | Path | None = None,
    device: str = "auto",
    precision: str = "float32",
    progress: Progress = no_progress,
) -> Tensor | tuple[int, ...]:
    """Features of a data set's images, of a folder's, or of texts.

    Args:
        encoder: From `as_backbone` or `load_backbone`, or what names a model.
        data: Name of a data set, `hf:ORG/NAME`, or a folder of images.
        texts: Texts in place of images.
        split: Of a data set: train, validation or test.
        kind: pooled (default), joint, class, patch, or text (default where there are texts).
        layer: Block of class and patch tokens; -1 is the last.
        limit: At most this many images, evenly spaced.
        output: A file, .parquet or .safetensors; without it the features are returned.
        workspace: Folder with data and weights.
        device: Where a model that is named is loaded.
        precision: float32 or bfloat16, likewise.
        progress: Told (stage, done, total).

    Returns:
        The features, float32 on the CPU; with `output` their shape.

    Raises:
        ConfigError: Both or neither of `data` and `texts` are given, or the model has no such
            features.
        DataError: Images are missing or broken.

    Example:
        >>> mb.embed("openai_vit-b-16", "~/birds", kind="patch", layer=8).shape  # doctest: +SKIP
        torch.Size([120, 196, 768])
    """
    import torch

    from maskclip_bench.backbones import Backbone, load_backbone, resolve_backbone
    from maskclip_bench.tasks import embedding

    if (data is None) == (texts is None):
        raise ConfigError("Give either data (images) or texts to embed.")
    chosen: Kind = kind or ("pooled" if texts is None else "text")
    if (chosen == "text") != (texts is not None) and chosen in embedding.KINDS:
        raise ConfigError(f"kind {chosen} does not go with {'texts' if texts else 'images'}.")
    place = Workspace.open(workspace)
    backbone = (
        encoder
        if isinstance(encoder, Backbone)
        else load_backbone(
            resolve_backbone(str(encoder)),
            workspace=place,
            device=resolve_device(device),
            precision=precision,  # type: ignore[arg-type]
        )
    )
    embedding.check_kind(backbone, chosen, layer)
    if texts is not None:
        batches = iter([embedding.embed_texts(backbone, texts, progress=progress)])
        names = [f"{index:08d}" for index in range(len(texts))]
        columns: dict[str, Sequence[Any]] = {"text": list(texts)}
    else:
        dataset = _images(str(data), split, place, limit)
        batches = embedding.embed_images(backbone, dataset, chosen, layer=layer, progress=progress)
        names = dataset.sample_ids
        columns = {} if dataset.labels is None else {"label": dataset.labels.tolist()}
    if output is None:
        return torch.cat(list(batches))
    note = {"kind": chosen, "layer": str(layer), "row": backbone.row_id}
    note |= {"weights": backbone.weights_fingerprint, "transform": backbone.transform_id}
    return embedding.write_embeddings(Path(output), batches, names, columns, note)


def _images(data: str, split: str, place: Workspace, limit: int | None) -> Dataset:
    """A split of a declared data set, or the images below a folder."""
    from maskclip_bench.data.dataset import Dataset, FileImages
    from maskclip_bench.data.directory_walk import walk_images
    from maskclip_bench.errors import DataError
    from maskclip_bench.tasks.declaration import load_task_declaration
    from maskclip_bench.tasks.protocols.base import evenly_spaced, open_split

    folder = Path(data).expanduser()
    if folder.is_dir():
        files = walk_images(folder).files
        if not files:
            raise DataError(f"{folder} holds no image. Give a folder with images below it.")
        paths = [file.path for file in files]
        names = [file.name for file in files]
        dataset = Dataset(
            name=folder.name,
            split="all",
            sample_ids=names,
            groups=list(names),
            read=FileImages(paths),
            files=paths,
            image_paths=paths,
        )
    else:
        dataset = open_split(load_task_declaration(data), split, place)
    return dataset if limit is None else dataset.take(evenly_spaced(len(dataset), limit))
