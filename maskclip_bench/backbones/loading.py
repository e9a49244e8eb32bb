"""From a row's declaration to a model that gives features, and the gate that all features pass.

Weights are read with safetensors or `weights_only=True`; nothing unpickles.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from PIL import Image
from torch import Tensor, nn

from maskclip_bench import storage
from maskclip_bench.backbones import probe
from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.backbones.encoders import Encoder, TrainableEncoder
from maskclip_bench.backbones.families.base import Loaded, one_at_a_time, short
from maskclip_bench.backbones.feature_points import no_text_tower
from maskclip_bench.backbones.layers import tokens_at
from maskclip_bench.backbones.model_state import refuse_nonfinite_weights, state_fingerprint
from maskclip_bench.backbones.row_identity import generation, with_generation
from maskclip_bench.backbones.transform import Transform, choose_transform
from maskclip_bench.errors import (
    CheckpointError,
    ConfigError,
    MaskCLIPBenchError,
    NonFiniteError,
    StorageError,
)
from maskclip_bench.results.records import row_id
from maskclip_bench.runtime import Workspace

Precision = Literal["float32", "bfloat16"]
"""Arithmetic of the forward pass; features are always stored in float32."""


@dataclass(frozen=True, eq=False)
class Backbone:
    """A loaded row: frozen, in evaluation mode, on a device.

    What leaves it has passed one gate: values that are not finite, or of another shape than
    stated, are errors, so that no protocol can make a score of them.

    B images, N patches, D backbone width, P joint width, T texts, S image size.

    Attributes:
        declaration: Its row.
        seed: Seed of its pretraining (or of its untrained weights).
        model: The underlying module.
        encoder: The interface to the model.
        transform: PIL image -> uint8 [3, S, S].
        weights_fingerprint: Hash of all that decides its features but the preprocessing: what it
            is made of, and the tensors as loaded.
        has_text: Whether it reads texts.
        device: Where it computes.
        precision: Of the forward pass.
        identity: Hash of all that the row is made of; the same as `weights_identity`.
        state: Hash of the tensors as loaded (`state_fingerprint`); "" if not known.
        identify: Gives the identity of a model in memory as it is now.
    """

    declaration: BackboneDeclaration
    seed: int
    model: nn.Module
    encoder: Encoder
    transform: Transform
    weights_fingerprint: str
    has_text: bool
    device: torch.device
    precision: Precision = "float32"
    identity: str = ""
    state: str = ""
    identify: Callable[[], str] | None = None
    _widths: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    @property
    def name(self) -> str:
        """Name of the declaration."""
        return self.declaration.name

    @property
    def row_id(self) -> str:
        """Name of the row: the backbone's, with the seed where it is not 0."""
        return row_id(self.name, self.seed)

    @property
    def image_size(self) -> int:
        """S, in pixels."""
        return self.transform.image_size

    @property
    def transform_id(self) -> str:
        """Hash of the preprocessing."""
        return self.transform.transform_id

    @property
    def feature_point(self) -> str:
        """Where `backbone` features are taken, in words."""
        return self.encoder.feature_point

    def as_it_is(self) -> Backbone:
        """This row with the fingerprints of now: a model in memory may have changed meanwhile.

        Raises:
            ConfigError: The weights of a row that was loaded by its name were changed.
        """
        state = state_fingerprint(self.model)
        if self.identify is None:
            if self.state not in ("", state):
                raise ConfigError(
                    f"The weights of {self.row_id} were changed since they were loaded, so its "
                    "score would not be that row's. Give the model to as_backbone, with a name of "
                    "its own."
                )
            return self
        identity = self.identify()
        if (identity, state) == (self.identity, self.state):
            return self
        before = f"{self.weights_fingerprint} {self.state} {self.identity}"
        return replace(
            self,
            identity=identity,
            state=state,
            weights_fingerprint=storage.fingerprint([before, identity, state], length=32),
        )

    def image_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """One forward pass, two feature points.

        Args:
            images: [B, 3, S, S]; uint8 from `transform`, or floats that are already normalized.

        Returns:
            {"backbone": [B, D]} and, with a text tower, "joint" [B, P], L2-normalised; float32.

        Raises:
            NonFiniteError: A value is not finite; says of how many images, `rows` of which.
            ConfigError: The encoder gives something else than a vector for each image.
        """
        with self._forward():
            outputs = self.encoder.image_outputs(self._prepare(images))
        return {
            point: self._gate(value, len(images), f"{point} features of images", ndim=2)
            for point, value in outputs.items()
        }

    def encode_image(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] -> joint embeddings [B, P], L2-normalised.

        Raises:
            ConfigError: The backbone has no joint space.
            NonFiniteError: A value is not finite.
        """
        if not self.has_text:
            raise no_text_tower(self.name)
        return self.image_outputs(images)["joint"]

    def forward_features(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] -> backbone features [B, D], before any projection.

        Raises:
            NonFiniteError: A value is not finite.
        """
        return self.image_outputs(images)["backbone"]

    def patch_tokens(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] -> patch tokens after the final norm, [B, N, D].

        Raises:
            ConfigError: The model gives none.
            NonFiniteError: A value is not finite.
        """
        with self._forward():
            tokens = self.encoder.patch_tokens(self._prepare(images))
        return self._gate(tokens, len(images), "patch tokens of images", ndim=3)

    def tokens_at(self, images: Tensor, layer: int) -> tuple[Tensor | None, Tensor]:
        """Class token [B, D] (None without one) and patch tokens [B, N, D] after a block.

        Args:
            images: [B, 3, S, S].
            layer: The block; 0 is the first, -1 the last.

        Raises:
            ConfigError: The model is no ViT, or has fewer blocks.
            NonFiniteError: A value is not finite.
        """
        with self._forward():
            first, patches = tokens_at(self.vision_trunk(), self._prepare(images), layer)
        what, number = f"tokens of layer {layer} of images", len(images)
        gated = None if first is None else self._gate(first, number, f"class {what}", ndim=2)
        return gated, self._gate(patches, number, f"patch {what}", ndim=3)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts -> [T, P], L2-normalised.

        Raises:
            ConfigError: The backbone has no text tower.
            NonFiniteError: A value is not finite.
        """
        if not self.has_text:
            raise no_text_tower(self.name)
        with self._forward():
            features = self.encoder.encode_text(texts)
        return self._gate(features, len(texts), "embeddings of texts", ndim=2)

    def vision_trunk(self) -> nn.Module:
        """The trunk that gives feature maps, for dense tasks.

        Raises:
            ConfigError: There is none.
        """
        return self.declaration.family.vision_trunk(self.model)

    def trainable(self) -> TrainableEncoder:
        """A copy of the model that maps normalized images to backbone features, with gradients.

        The backbone itself stays as it is.
        """
        return TrainableEncoder(copy.deepcopy(self.encoder))

    def image_tensor(self, image: Image.Image) -> Tensor:
        """One image, prepared: uint8 [3, S, S]."""
        return self.transform(image)

    def _prepare(self, images: Tensor) -> Tensor:
        return self.transform.normalize(images.to(self.device, non_blocking=True))

    @contextlib.contextmanager
    def _forward(self) -> Iterator[None]:
        """No gradients, the row's precision; an encoder that wants to exit is one that failed."""
        try:
            with torch.no_grad(), self._autocast():
                yield
        except SystemExit as error:
            raise ConfigError(
                f"{self.row_id}: the encoder called exit({error.code}). Let it raise an error "
                "instead."
            ) from error

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _gate(self, value: Any, number: int, what: str, *, ndim: int) -> Tensor:
        """Check what an encoder returned -> float32.

        Raises:
            ConfigError: It is no tensor of real numbers of the stated shape, or not as wide as
                before.
            NonFiniteError: A value is not finite, or a vector is so long that its length is not,
                or so short that float32 holds only zeros.
        """
        wanted = "[B, D]" if ndim == 2 else "[B, N, D]"
        shape = tuple(getattr(value, "shape", ()))
        if not _is_plain(value) or len(shape) != ndim or shape[0] != number or 0 in shape:
            raise ConfigError(
                f"{self.row_id}: {what} are {type(value).__name__} {shape} for {number} inputs. "
                f"The encoder should return a real tensor {wanted}, dense and not empty, one entry "
                "for each input."
            )
        if self._widths.setdefault(what, shape[-1]) != shape[-1]:
            raise ConfigError(
                f"{self.row_id}: {what} have {shape[-1]} numbers, and had {self._widths[what]} "
                "before. The encoder should return vectors of one width."
            )
        result: Tensor = value.detach().float()
        lost = (value != 0).any(dim=-1) & (result == 0).all(dim=-1)  # of float64
        if bool(lost.any()):
            raise NonFiniteError(
                f"{self.row_id}: {what} are so small for {int(lost.sum())} of {number} inputs that "
                "float32 holds only zeros. Multiply the encoder's output by a constant.",
                rows=lost.reshape(number, -1).any(dim=1).nonzero().flatten().tolist(),
            )
        finite = torch.isfinite(result.norm(dim=-1)).reshape(number, -1).all(dim=1)  # [B]
        if not bool(finite.all()):
            rows = (~finite).nonzero().flatten().tolist()
            raise NonFiniteError(
                f"{self.row_id}: {what} are not finite (NaN or infinite) for {len(rows)} of "
                f"{number} inputs, computed in {self.precision} on {self.device.type}. No score is "
                "made of them. Check the weights, and the arithmetic for overflow.",
                rows=rows,
            )
        return result


def load_backbone(
    declaration: BackboneDeclaration,
    *,
    workspace: Workspace,
    seed: int = 0,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
) -> Backbone:
    """Build the model of a row with its weights.

    Zoo models that are not on this machine are downloaded by their library.

    Args:
        declaration: The row.
        workspace: Where the weights of rows made here are.
        seed: Which repetition of its pretraining; the seed of the weights of a `random_init` row.
        device: Where it shall compute.
        precision: Arithmetic of the forward pass.

    Raises:
        CheckpointError: The weights are missing, broken or of another architecture.
        ConfigError: The declaration does not fit the model, or the model is not deterministic.
        NonFiniteError: Weights or features are not finite.
        MissingDependencyError: The source needs a package that is not installed.
    """
    family = declaration.family
    loaded = _load(declaration, workspace, seed)
    identity = loaded.own_identity
    if identity is None:
        identity = family.identity(declaration, workspace=workspace, seed=seed)
    backbone = backbone_of(
        loaded,
        declaration,
        identity=identity,
        seed=seed,
        device=torch.device(device),
        precision=precision,
    )
    outputs = checked_probe(backbone)
    try:
        number = probe.check_against_stored(backbone, identity, outputs, workspace)
    except StorageError:  # a workspace that can only be read; recording will say so
        number = generation(identity, workspace)
    return replace(
        backbone,
        identity=with_generation(identity, number),
        weights_fingerprint=with_generation(backbone.weights_fingerprint, number),
    )


def backbone_of(
    loaded: Loaded,
    declaration: BackboneDeclaration,
    *,
    identity: str,
    seed: int = 0,
    device: torch.device,
    precision: Precision = "float32",
    freeze: bool = True,
) -> Backbone:
    """Put a loaded model on a device, with its transform and its fingerprint.

    Raises:
        NonFiniteError: Weights are not finite.
        ConfigError: The declaration does not fit the model, or the precision is none.
    """
    row = declaration.name or declaration.display_name
    if precision not in get_args(Precision):
        raise ConfigError(
            f"{row}: {precision!r} is no precision. Use one of {', '.join(get_args(Precision))}."
        )
    refuse_nonfinite_weights(loaded.model, row)
    transform = choose_transform(
        loaded.preprocess,
        declaration.preprocess,
        library=loaded.library_transform,
        inexpressible=loaded.inexpressible,
        what=row,
    )
    model = loaded.model.to(device).eval()
    if freeze:
        model.requires_grad_(False)
    state = state_fingerprint(model)
    return Backbone(
        declaration=declaration,
        seed=seed,
        model=model,
        encoder=loaded.encoder,
        transform=transform,
        weights_fingerprint=storage.fingerprint([identity, loaded.architecture, state], length=32),
        has_text=loaded.has_text,
        device=device,
        precision=precision,
        identity=identity,
        state=state,
    )


def load_model(
    declaration: BackboneDeclaration, *, workspace: Workspace, seed: int = 0
) -> nn.Module:
    """The module of a row with its weights, as its library makes it: not frozen, on the CPU.

    Raises:
        MaskCLIPBenchError: See `load_backbone`.
    """
    model = _load(declaration, workspace, seed).model
    refuse_nonfinite_weights(model, declaration.name)
    return model


def _load(declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> Loaded:
    """Build a model, one at a time in this process.

    Raises:
        CheckpointError: Its files changed meanwhile, or its library failed.
        MaskCLIPBenchError: See `load_backbone`.
    """
    family = declaration.family
    with one_at_a_time():
        before = _identity_or_none(declaration, workspace, seed)
        try:
            loaded = family.load(declaration, workspace, seed)
        except MaskCLIPBenchError:
            raise
        except Exception as error:  # a row that cannot be loaded fails alone
            raise CheckpointError(
                f"{declaration.name}: loading it failed with {type(error).__name__}: "
                f"{short(error)}. Check what its source names."
            ) from error
        after = _identity_or_none(declaration, workspace, seed)
    if loaded.own_identity is None and before is not None and before != after:
        raise CheckpointError(
            f"{declaration.name}: its files changed while they were loaded. Try again when they "
            "are complete."
        )
    return loaded


def _identity_or_none(
    declaration: BackboneDeclaration, workspace: Workspace, seed: int
) -> str | None:
    """Identity of files that are here; None where loading makes or downloads something."""
    if declaration.family.made_by_code:
        return None
    if declaration.family.missing(declaration, workspace, seed) is not None:
        return None
    return declaration.family.identity(declaration, workspace=workspace, seed=seed)


def checked_probe(backbone: Backbone) -> dict[str, Tensor]:
    """Run the probe twice, and in part alone.

    Raises:
        ConfigError: The model fails on it, or gives other features each time, or in another batch.
        NonFiniteError: It gives values that are not finite.
    """
    try:
        outputs = probe.probe_outputs(backbone)
        probe.check_deterministic(backbone, outputs)
        probe.check_independent(backbone, outputs)
    except MaskCLIPBenchError:
        raise
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the model's own code raises
        raise ConfigError(
            f"{backbone.row_id}: the model fails on a test image or text with "
            f"{type(error).__name__}: {short(error)}. Check that its image size and its "
            "preprocessing fit it."
        ) from error
    return outputs


def _is_plain(value: Any) -> bool:
    """Whether a value is a tensor of real numbers that can be read element by element."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_complex() or value.is_quantized or value.is_nested)
        and value.device.type != "meta"
    )
