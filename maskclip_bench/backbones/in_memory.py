"""A model in memory as a row: `as_backbone(my_module, image_size=224, mean=..., std=...)`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.backbones.encoders import loaded_from_object
from maskclip_bench.backbones.families.base import Family, Loaded, Source
from maskclip_bench.backbones.loading import Backbone, Precision, backbone_of, checked_probe
from maskclip_bench.backbones.object_identity import object_contents
from maskclip_bench.backbones.preprocess import Interpolation
from maskclip_bench.config import World, validate
from maskclip_bench.errors import CheckpointError, ConfigError
from maskclip_bench.results.record_model import check_name
from maskclip_bench.runtime import Workspace

EncodeImage = Callable[[Tensor], Tensor]
"""Images [B, 3, H, W] -> [B, D]."""

EncodeText = Callable[[Sequence[str]], Tensor]
"""Texts -> [T, P]."""


class MemorySource(Source):
    """A model in memory; no file can name it."""

    memory: str
    """What Python calls its class."""
    reads_text: bool = False
    """Whether it has a text encoder."""

    @property
    def family(self) -> Family:
        """The family of models in memory."""
        return _MEMORY


class Memory(Family):
    """Models in memory: already loaded, and gone with the process."""

    name = "memory"
    source_model = MemorySource

    def has_text(self, source: MemorySource) -> bool | None:
        """As it was given."""
        return source.reads_text

    def missing(
        self, declaration: BackboneDeclaration, workspace: Workspace, seed: int
    ) -> str | None:
        """Always: it cannot be loaded a second time."""
        return f"{declaration.name} is a model in the memory of another process"

    def contents(self, declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> Any:
        """Not known without the model.

        Raises:
            CheckpointError: Always.
        """
        raise _in_memory(declaration)

    def load(self, declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> Loaded:
        """It is loaded already.

        Raises:
            CheckpointError: Always.
        """
        raise _in_memory(declaration)


_MEMORY = Memory()


def _in_memory(declaration: BackboneDeclaration) -> CheckpointError:
    return CheckpointError(
        f"{declaration.name} is a model in memory, which only the program that made it can "
        "evaluate. Give the Backbone itself to `evaluate`, or declare a row with "
        "source: {python: 'module:factory'}."
    )


@dataclass(eq=False)
class _Given:
    """What the caller gave, as one encoder."""

    module: Any
    encode_image: EncodeImage
    preprocess: Any
    encode_text: EncodeText | None = None
    forward_features: EncodeImage | None = None
    patch_tokens: Callable[[Tensor], Tensor] | None = None


def as_backbone(
    module: Any,
    *,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    encode_text: EncodeText | None = None,
    encode_image: EncodeImage | None = None,
    preprocess: Callable[[Any], Tensor] | None = None,
    name: str = "mine",
    display_name: str = "",
    resize_to: int | None = None,
    resize_mode: Literal["shortest", "squash"] | None = None,
    interpolation: Interpolation | None = None,
    world: World = "real",
    device: torch.device | str | None = None,
    precision: Precision = "float32",
) -> Backbone:
    """Make a row of a model in memory.

    Its identity is a hash of its code and of all values reachable from it, or its own
    `fingerprint() -> str`; where neither is possible, nothing is reused by other processes.

    Args:
        module: An `nn.Module` or another callable, images [B, 3, H, W] -> [B, D], or an object
            with `encode_image`, and optionally `encode_text`, `forward_features`, `patch_tokens`.
            Put into evaluation mode; its weights stay as they are and keep `requires_grad`.
        image_size: Side of the square that enters the model, in pixels.
        mean: Per channel, of values 0 to 1.
        std: Per channel, of values 0 to 1.
        encode_text: Texts -> [T, P], the space of `encode_image`; without it the model takes part
            in image tasks only.
        encode_image: Images -> [B, P], if that is not what calling `module` gives.
        preprocess: Instead of sizes, mean and std: PIL image -> float [3, H, W], normalized.
        name: Of the row: letters, digits, "-", "_" and ".".
        display_name: What a table calls it; by default the name.
        resize_to: Short side after resizing, before the centre crop; by default `image_size`.
        resize_mode: "shortest" (default) or "squash".
        interpolation: Resize filter, by default bicubic.
        world: "demo" for a model of the demo world, which tables keep apart.
        device: Where it computes; by default where its weights are.
        precision: Arithmetic of the forward pass.

    Raises:
        ConfigError: It is no encoder, its preprocessing is not stated, an option or the name is
            none.
        NonFiniteError: Its weights or its features are not finite.
    """
    given = _given(module, encode_image, encode_text, preprocess)
    _refuse_unstated(given, image_size, mean, std, name)
    override = {
        "image_size": image_size,
        "mean": mean,
        "std": std,
        "resize_to": resize_to,
        "resize_mode": resize_mode,
        "interpolation": interpolation,
    }
    values = {
        "name": valid_name(name),
        "display_name": display_name or name,
        "world": world,
        "source": MemorySource(
            memory=type(module).__qualname__, reads_text=given.encode_text is not None
        ),
        "preprocess": {key: value for key, value in override.items() if value is not None},
    }
    declaration = validate(values, BackboneDeclaration, where=f"The row {name}")

    def identify() -> str:
        contents = object_contents(given if _own_fingerprint(module) is None else module)
        return _MEMORY.identity_of([contents, override])

    loaded = loaded_from_object(
        given,
        architecture=["memory", json.dumps(override, default=str)],
        own_identity=identify(),
    )
    if device is None:
        device = next((value.device for value in loaded.model.parameters()), "cpu")
    backbone = backbone_of(
        loaded,
        declaration,
        identity=str(loaded.own_identity),
        device=torch.device(device),
        precision=precision,
        freeze=False,
    )
    checked_probe(backbone)
    return replace(backbone, identity=identify(), identify=identify)


def _given(
    module: Any,
    encode_image: EncodeImage | None,
    encode_text: EncodeText | None,
    preprocess: Callable[[Any], Tensor] | None,
) -> Any:
    """One encoder of the module and what was given beside it.

    Raises:
        ConfigError: It encodes no images.
    """
    own_image = getattr(module, "encode_image", None)
    image = encode_image or (own_image if callable(own_image) else None)
    if image is None and callable(module):
        image = module
    if image is None:
        raise ConfigError(
            f"A {type(module).__name__} is no encoder. Give an nn.Module or a function, images "
            "[B, 3, H, W] -> [B, D], an object with encode_image, or encode_image=."
        )
    text = encode_text or getattr(module, "encode_text", None)
    features = getattr(module, "forward_features", None) if callable(own_image) else None
    patches = getattr(module, "patch_tokens", None)
    return _Given(
        module=module,
        encode_image=image,
        preprocess=preprocess if preprocess is not None else getattr(module, "preprocess", None),
        encode_text=text if callable(text) else None,
        forward_features=features if callable(features) else None,
        patch_tokens=patches if callable(patches) else None,
    )


def _refuse_unstated(
    given: Any,
    image_size: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    name: str,
) -> None:
    if given.preprocess is not None:
        return
    values = {"image_size": image_size, "mean": mean, "std": std}
    missing = [key for key, value in values.items() if value is None]
    if missing:
        raise ConfigError(
            f"{name}: its preprocessing is not stated: {', '.join(missing)}. Give image_size, mean "
            "and std as it was trained (of values 0 to 1), or preprocess=, a function, PIL image "
            "-> float tensor [3, H, W]."
        )


def _own_fingerprint(module: Any) -> Any:
    own = getattr(module, "fingerprint", None)
    return own if callable(own) else None


def valid_name(name: str) -> str:
    """The name of a row.

    Raises:
        ConfigError: No record can have it.
    """
    return check_name(name, "row")
