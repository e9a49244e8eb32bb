"""What both OpenMMLab backbones share: the source of their weights, checkpoints, and freezing.

A backbone is built without weights. They arrive in one of two ways: `init_weights()`, which
training calls, loads them from the source; or a checkpoint fills them, as in testing, in
inferencers and when a run goes on. So a finetuned checkpoint needs its config and nothing else:
neither the pretrained weights nor a network. A checkpoint also holds the architecture, as a buffer
of bytes, for sources whose architecture is in a folder that is gone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from maskclip_bench.backbones.model_state import state_fingerprint
from maskclip_bench.backbones.openmmlab.remembered_maps import RememberedMaps
from maskclip_bench.backbones.openmmlab.trunk_sources import (
    SourceNotHere,
    TrunkSource,
    build_trunk,
    decode_architecture,
    encode_architecture,
    load_trunk,
    trunk_of_architecture,
)
from maskclip_bench.config import validate
from maskclip_bench.errors import CheckpointError, ConfigError
from maskclip_bench.storage import fingerprint

logger = logging.getLogger(__name__)

ARCHITECTURE = "architecture"
"""Name of the buffer."""

_LORA_BASE = ".base_layer."
"""peft puts a layer that it wraps one level deeper."""


class TrunkBackbone(BaseModule):
    r"""Base of `MaskCLIPViT` and `MaskCLIPPyramid`.

    Args:
        source: Arguments of the config that name the weights (see `TrunkSource`).
        frozen: No gradient, and evaluation mode even in training.
        train_only: Regular expressions; if there are any, only parameters with a name that one of
            them is found in are trained (`[r"\.bias$"]`, `["norm"]`).
        lora: Settings of peft's `LoraConfig` (`dict(r=8, target_modules=["qkv", "proj"])`): the
            trunk is frozen, and low-rank additions to the named layers are trained. Needs
            `pip install 'maskclip-bench[lora]'`.
        init_cfg: mmengine's; only None is taken, because the weights come from the source.

    Raises:
        ConfigError: `init_cfg` is given, or not exactly one source, or arguments that do not go
            with it.
    """

    tower: nn.Module | None
    """The trunk, cut to what its maps need; None until a checkpoint says its architecture."""
    architecture: Tensor

    def __init__(
        self,
        source: Mapping[str, Any],
        *,
        frozen: bool,
        init_cfg: object,
        train_only: Sequence[str] = (),
        lora: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if init_cfg is not None:
            raise ConfigError(
                f"init_cfg={init_cfg!r}: the weights of this backbone come from its source. Set "
                "backbone=, checkpoint=, timm= or open_clip= instead."
            )
        if frozen and (train_only or lora):
            raise ConfigError("frozen=True trains nothing; leave out train_only and lora.")
        self.frozen = frozen
        self.train_only = [re.compile(pattern) for pattern in train_only]
        self.lora = dict(lora) if lora else None
        self.source = validate(dict(source), TrunkSource, where=type(self).__name__)
        self._checkpoint_follows = False
        self._why_not_here: str | None = None
        self.tower = None
        self.register_buffer(ARCHITECTURE, encode_architecture(None))
        self.has_weights = False
        self._encoder: str | None = None

    def build(self) -> None:
        """Build the trunk of the source; called at the end of a constructor.

        Raises:
            ConfigError: The source names nothing that is known, or `assemble` refuses it.
        """
        try:
            built = build_trunk(self.source)
        except SourceNotHere as error:
            self._why_not_here = str(error)
            return
        self.architecture = encode_architecture(built.architecture)
        self._assemble(built.trunk)
        self.has_weights = built.has_weights

    def _assemble(self, trunk: nn.Module) -> None:
        self.tower = self.assemble(trunk)
        if self.lora is not None:
            add_lora(self.tower, self.lora)
        elif self.train_only:
            self._train_only()
        if self.frozen:
            self.requires_grad_(False)
            self.eval()

    def _train_only(self) -> None:
        chosen = [
            value.requires_grad_(any(pattern.search(name) for pattern in self.train_only))
            for name, value in self.trunk.named_parameters()
        ]
        if not any(value.requires_grad for value in chosen):
            names = [name for name, _ in self.trunk.named_parameters()]
            patterns = [pattern.pattern for pattern in self.train_only]
            raise ConfigError(
                f"train_only={patterns} fits none of the {len(names)} parameters, e.g. {names[0]}, "
                f"{names[-1]}. Correct the expressions, or set frozen=True."
            )

    def assemble(self, trunk: nn.Module) -> nn.Module:
        """Cut a trunk to what the maps need, and note what `feature_maps` needs -> `tower`.

        Raises:
            ConfigError: The arguments do not fit the trunk.
        """
        raise NotImplementedError

    @property
    def trunk(self) -> nn.Module:
        """`tower`, which is there.

        Raises:
            CheckpointError: The architecture is not known yet.
        """
        if self.tower is None:
            raise CheckpointError(
                f"The architecture of this backbone is not known here: {self._why_not_here} Or "
                "load a checkpoint that was trained with it."
            )
        return self.tower

    # Weights.

    def init_weights(self) -> None:
        """Load the weights of the source (mmengine would let timm modules initialize them again).

        The generators of random numbers stay as they are.

        Raises:
            CheckpointError: The weights are missing or of another architecture.
        """
        self._is_init = True
        self._encoder = None
        if self.has_weights or self._checkpoint_follows:
            return
        with torch.random.fork_rng(devices=[]):
            loaded = load_trunk(self.source)
        self.prepare(loaded)
        state = loaded.state_dict()
        own = self.trunk.state_dict()
        wanted = {key: name for key in own if (name := self.source_name(key)) is not None}
        absent = [name for name in wanted.values() if name not in state]
        shapes = [
            name
            for key, name in wanted.items()
            if name in state and state[name].shape != own[key].shape
        ]
        if absent or shapes:
            raise CheckpointError(
                f"The weights of {self.source.named} are of another architecture than its "
                f"description: {len(absent)} tensors missing, {len(shapes)} of another shape, e.g. "
                f"{(absent + shapes)[0]}. Export or download the model again."
            )
        self.trunk.load_state_dict({key: state[name] for key, name in wanted.items()}, strict=False)
        self.has_weights = True

    def prepare(self, trunk: nn.Module) -> None:
        """Change a trunk with its weights as `assemble` changed the one without."""

    def source_name(self, key: str) -> str | None:
        """Name in the source's trunk of a tensor of `tower`; None for what the source has not."""
        return None if "lora_" in key else key.replace(_LORA_BASE, ".")

    def expect_checkpoint(self) -> None:
        """Let `init_weights` load nothing, because a checkpoint is loaded after it (`--resume`)."""
        self._checkpoint_follows = True

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any
    ) -> None:  # (local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        """Torch's and mmengine's: take the weights of a checkpoint.

        Raises:
            CheckpointError: Some of the backbone's tensors are missing.
        """
        self._encoder = None
        if any(name.startswith(f"{prefix}tower.") for name in state_dict):
            stored = state_dict.get(prefix + ARCHITECTURE)
            device = self.architecture.device
            if self.tower is None and stored is not None and stored.numel():
                with torch.random.fork_rng(devices=[]):
                    trunk = trunk_of_architecture(decode_architecture(stored) or {})
                self._assemble(trunk)
                self.to(device)
                self.train(self.training)
            if stored is not None:
                self.architecture = torch.empty_like(stored, device=device)
            absent = [
                name
                for name in self.trunk.state_dict(prefix=f"{prefix}tower.")
                if name not in state_dict
            ]
            if absent:
                raise CheckpointError(
                    f"The checkpoint has no {absent[0]} ({len(absent)} tensors of the backbone are "
                    "missing): it was trained with another backbone, or with another version of "
                    "this package. Use the config that it was trained with."
                )
            self.has_weights = True
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        missing = arguments[2]
        if prefix + ARCHITECTURE in missing:  # of an older version
            missing.remove(prefix + ARCHITECTURE)

    # Running.

    def train(self, mode: bool = True) -> TrunkBackbone:
        """A frozen backbone stays in evaluation mode."""
        super().train(mode and not self.frozen)
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images [B, 3, H, W] -> tuple of [B, channels, H / stride, W / stride], contiguous.

        Raises:
            CheckpointError: Neither the source nor a checkpoint gave weights.
            ValueError: The trunk cannot take images of this size.
        """
        if not self.has_weights and not self.weights_do_not_matter:
            raise CheckpointError(
                f"{type(self).__name__} has no weights yet: they come from init_weights(), which "
                "training calls, or from a checkpoint. Load one."
            )
        if self.frozen and self.remembered is not None and images.device.type == "cpu":
            if self._encoder is None:
                self._encoder = self._name_of_encoder()
            with torch.no_grad():
                return self.remembered(images, self.feature_maps, encoder=self._encoder)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.feature_maps(images)

    weights_do_not_matter: bool = False
    """Set on the class by tools that only count operations."""

    remembered: RememberedMaps | None = None
    """Set on the class by runs whose images come again: keeps maps of frozen backbones."""

    def _name_of_encoder(self) -> str:
        """Hash of what the maps of an image depend on: weights, and settings of this class."""
        settings = {
            name: repr(value)
            for name, value in vars(self).items()
            if name[0] != "_" and isinstance(value, bool | int | float | str | tuple | list | None)
        }
        return fingerprint([type(self).__name__, settings, state_fingerprint(self)])

    def feature_maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """See `forward`."""
        raise NotImplementedError


def add_lora(trunk: nn.Module, settings: Mapping[str, Any]) -> None:
    """Freeze a trunk and add low-rank matrices that are trained (Hu et al., 2022, by peft).

    Raises:
        MissingDependencyError: peft is not installed.
        ConfigError: peft refuses the settings.
    """
    from maskclip_bench.errors import MissingDependencyError
    from maskclip_bench.extras import install_command

    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingDependencyError(
            f"lora= needs peft, which is not installed: {install_command('lora')}"
        ) from error
    trunk.requires_grad_(False)
    try:
        inject_adapter_in_model(LoraConfig(**settings), trunk)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"lora={dict(settings)}: {error} Its keys are those of peft's LoraConfig; "
            "target_modules are ends of names of linear layers, such as qkv."
        ) from error


def resolve_indices(indices: Sequence[int], depth: int, *, what: str) -> tuple[int, ...]:
    """Indices of blocks or stages, ascending and counted from 0.

    Raises:
        ConfigError: One is out of range, or there are no `out_indices`.
    """
    resolved = sorted({index + depth if index < 0 else index for index in indices})
    if any(not 0 <= index < depth for index in resolved) or (what == "out_indices" and not indices):
        raise ConfigError(
            f"{what}={tuple(indices)} for {depth} blocks or stages: use numbers from 0 to "
            f"{depth - 1}, or from {-depth} to -1."
        )
    return tuple(resolved)
