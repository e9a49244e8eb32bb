"""`MaskCLIPViT`: a ViT of the benchmark as a backbone of mmseg and mmdet.

It runs the ViT (timm's or open_clip's) block by block, so that it can return the maps of several
blocks, take images of any size, and attend in windows. It is registered in mmengine's root
registry, where mmseg and mmdet both look, and does not clash with `MaskClipHead` of another work
called MaskCLIP (ECCV 2022).

| kind | examples in timm | other sizes | windows |
| --- | --- | --- | --- |
| learned positions | `vit_*`, `deit*`, open_clip's own | resampled | yes |
| rotary positions (`Eva`) | `eva02_*`, `vit_*_dinov3`, `vit_pe_*` | computed | yes |
| a convolutional stem | `vit_*_r50_*`, `vit_*_resnet*` | resampled | yes |
| relative positions | `beit*`, `vit_relpos_*` | only `img_size` | no |

Shapes: B images, P prefix tokens (class token, registers), N = h * w patches, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskclip_bench.backbones.openmmlab.token_grid import (
    join_windows,
    partition_windows,
    tile_positions,
)
from maskclip_bench.backbones.openmmlab.trunk_backbone import TrunkBackbone, resolve_indices
from maskclip_bench.errors import ConfigError
from maskclip_bench.modeling.dense_vit import (
    dense_parts,
    has_weight_decay,
    is_dense_vit,
    keep_blocks,
    layer_of,
    resample_positions,
    set_drop_path,
    set_input_size,
    stages,
)
from maskclip_bench.modeling.relative_positions import RelativePositions


@MODELS.register_module()
class MaskCLIPViT(TrunkBackbone):
    """A ViT as an OpenMMLab backbone: images [B, 3, H, W] -> one map per `out_indices`.

    Args:
        out_indices: Blocks whose maps are returned, 0-based, ascending; negative ones count from
            the end. Blocks after the last one are removed.
        final_norm: Whether the trunk's last norm is applied to the map of its last block (the
            patch tokens that classification sees). Otherwise that norm is removed.
        frozen: No gradient, and evaluation mode even in training.
        frozen_stages: As in OpenMMLab's backbones: 0 freezes what is before the first block, k
            also the first k blocks; -1 freezes nothing.
        train_only: Regular expressions of the parameters that are trained; see `TrunkBackbone`.
        lora: Settings of peft's `LoraConfig`; see `TrunkBackbone`.
        drop_path_rate: Stochastic depth of the last block; the others grow to it linearly.
        with_cp: Gradient checkpointing (OpenMMLab's name): recompute blocks in the backward pass.
        img_size: (height, width) that positions are resampled to once, before training, so that the
            resampled table is what is trained. Relative positions need it for another size than
            their own; others take any size, with or without it.
        window_size: Patches along a side of an attention window; None = every block is global.
            As in ViTDet, the attention alone runs in windows, which are padded with zeros at the
            bottom and right, after the norm. Prefix tokens, which ViTDet does not have, are
            copied into each window, and what they attend to is averaged over the windows. Rotary
            positions are those of the whole image.
        global_indices: Blocks that attend globally in spite of `window_size`.
        relative_positions: (rows, columns) of patches; None = none. Each attention gets tables of
            relative positions that are trained from zero, as in ViTDet: in windows of their size,
            elsewhere of this grid (linearly resampled for another one).
        tile_positions: Repeat the position embeddings over the image instead of resampling them.
            With windows of the native grid, each window then looks like an image of pretraining
            (Bolya et al., 2023, arXiv 2311.05613).
        init_cfg: mmengine's; only None is taken, because the weights come from the source.
        source: Where the weights come from; see `TrunkSource` for its keys.

    Raises:
        ConfigError: The source is not a ViT, an index is out of range, `init_cfg` is given, an
            argument does not apply to this kind of ViT, `tile_positions` goes with windows that are
            not the native grid, or `relative_positions` would not be trained.
        CheckpointError: (in `init_weights`) The weights are missing or of another architecture.
    """

    def __init__(
        self,
        *,
        out_indices: Sequence[int] = (-1,),
        final_norm: bool = True,
        frozen: bool = False,
        frozen_stages: int = -1,
        train_only: Sequence[str] = (),
        lora: Mapping[str, Any] | None = None,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        img_size: Sequence[int] | None = None,
        window_size: int | None = None,
        global_indices: Sequence[int] = (),
        relative_positions: Sequence[int] | None = None,
        tile_positions: bool = False,
        init_cfg: dict | None = None,
        **source: Any,
    ) -> None:
        super().__init__(source, frozen=frozen, init_cfg=init_cfg, train_only=train_only, lora=lora)
        self.out_indices: Sequence[int] = out_indices
        self.global_indices = global_indices
        self.final_norm = final_norm
        self.frozen_stages = frozen_stages
        self.drop_path_rate = drop_path_rate
        self.with_cp = with_cp
        self.img_size = None if img_size is None else (int(img_size[0]), int(img_size[1]))
        self.window_size = window_size
        self.relative_positions = relative_positions
        if relative_positions is not None and (frozen or lora):
            raise ConfigError(
                "relative_positions begin at zero and have to be trained: leave them out with "
                "frozen=True and with lora."
            )
        self.tile_positions = tile_positions
        self.build()

    def assemble(self, trunk: nn.Module) -> nn.Module:
        """Remove later blocks and heads; set windows, norms and stochastic depth."""
        if not is_dense_vit(trunk):
            raise _no_vit(trunk)
        if self.img_size is not None:
            set_input_size(trunk, self.img_size)
        vit = dense_parts(trunk)
        depth = len(vit.blocks)
        self.out_indices = resolve_indices(self.out_indices, depth, what="out_indices")
        num_blocks = self.out_indices[-1] + 1
        self.final_norm = self.final_norm and num_blocks == depth
        if self.final_norm and not vit.has_norm:
            raise ConfigError(
                f"This {type(trunk).__name__} normalizes what it pools, and has no norm for its "
                "patch tokens. Set final_norm=False."
            )
        keep_blocks(trunk, num_blocks, norm=self.final_norm)
        self.vit = dense_parts(trunk)
        for index, block in enumerate(self.vit.blocks):
            set_drop_path(block, self.drop_path_rate * index / max(depth - 1, 1))
        self.embed_dims = self.vit.embed_dim
        self.patch_size = self.vit.patch_size
        self.num_layers = num_blocks
        global_blocks = resolve_indices(self.global_indices, depth, what="global_indices")
        self.windowed = [
            self.window_size is not None and index not in global_blocks
            for index in range(num_blocks)
        ]
        self._check_windows()
        self._add_relative_positions()
        self._freeze_stages(trunk)
        return trunk

    def _add_relative_positions(self) -> None:
        if self.relative_positions is None:
            return
        rows, columns = self.relative_positions
        for block, windowed in zip(self.vit.blocks, self.windowed, strict=True):
            head_dim = self.vit.head_dim(block)
            if head_dim is None:
                raise ConfigError(
                    f"The attention of a {type(block).__name__} takes no relative positions: they "
                    "go with timm's Block and open_clip's blocks. Set relative_positions=None."
                )
            size = self.window_size if windowed else None
            grid = (rows, columns) if size is None else (size, size)
            block.relative_positions = RelativePositions(grid, head_dim)

    def prepare(self, trunk: nn.Module) -> None:
        """Resample the positions of the weights."""
        if self.img_size is not None:
            set_input_size(trunk, self.img_size)

    def source_name(self, key: str) -> str | None:
        """The source has no relative positions of this kind."""
        return None if ".relative_positions." in key else super().source_name(key)

    def _check_windows(self) -> None:
        size, vit = self.window_size, self.vit
        if self.tile_positions and vit.positions()[1] is None:
            raise ConfigError(
                f"tile_positions repeats learned positions, and this {type(vit.trunk).__name__} "
                "has none. Set tile_positions=False."
            )
        if self.tile_positions and vit.grid_size != (size, size):
            raise ConfigError(
                f"tile_positions repeats the native grid of {vit.grid_size[0]} x "
                f"{vit.grid_size[1]} patches and needs windows of that size; window_size is "
                f"{size}. Set window_size to the grid's side, or tile_positions=False."
            )
        for block, windowed in zip(vit.blocks, self.windowed, strict=True):
            if windowed and not vit.attends_separately(block):
                raise ConfigError(
                    f"The attention of a {type(block).__name__} cannot run in windows: it goes "
                    "with timm's Block and EvaBlock, and open_clip's blocks. Set window_size=None."
                )

    def _freeze_stages(self, trunk: nn.Module) -> None:
        found = stages(trunk)
        if not -1 <= self.frozen_stages < len(found):
            raise ConfigError(
                f"frozen_stages={self.frozen_stages}: use -1 (none) to {len(found) - 1} (what is "
                f"before the blocks, and all {len(found) - 1} blocks)."
            )
        self._frozen_modules: list[nn.Module] = []
        for parts in found[: self.frozen_stages + 1]:
            for part in parts:
                part.requires_grad_(False)
                if isinstance(part, nn.Module):
                    self._frozen_modules.append(part.eval())

    def train(self, mode: bool = True) -> MaskCLIPViT:
        """Frozen stages stay in evaluation mode, as all of a frozen backbone does."""
        super().train(mode)
        for module in getattr(self, "_frozen_modules", ()):
            module.eval()
        return self

    def feature_maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images [B, 3, H, W] -> tuple of [B, D, H / patch, W / patch], contiguous.

        Raises:
            ValueError: H or W is no multiple of the patch size.
            ConfigError: The images have not the one size that relative positions are made for.
        """
        vit = self.vit
        tokens, grid = self._embed(images)  # [B, P + N, D]
        ropes = vit.ropes(grid)
        outputs = []
        for index, block in enumerate(vit.blocks):
            rope = None if ropes is None else ropes[index]
            tokens = self._run_block(block, tokens, grid, rope, windowed=self.windowed[index])
            if index in self.out_indices:
                last = index == len(vit.blocks) - 1
                normed = vit.norm(tokens) if last and self.final_norm else tokens
                outputs.append(self._to_map(normed, grid))
        return tuple(outputs)

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        vit = self.vit
        (height, width), (patch_height, patch_width) = images.shape[-2:], self.patch_size
        if height % patch_height or width % patch_width:
            raise ValueError(
                f"Images of {height} x {width} pixels are no multiple of the patch size "
                f"{patch_height} x {patch_width}. Pad them in the data preprocessor: "
                "size_divisor (mmseg: also in its test_cfg) or pad_size_divisor (mmdet)."
            )
        grid = (height // patch_height, width // patch_width)
        vit.check_grid(grid)
        tokens = vit.patch_map(images).flatten(2).transpose(1, 2)  # [B, N, D]
        _, positions = vit.positions()
        if positions is not None:
            arrange = tile_positions if self.tile_positions else resample_positions
            tokens = tokens + arrange(positions, vit.grid_size, grid)
        return vit.with_prefix(tokens), grid

    def _run_block(
        self,
        block: nn.Module,
        tokens: Tensor,
        grid: tuple[int, int],
        rope: Tensor | None,
        *,
        windowed: bool,
    ) -> Tensor:
        attend = None
        if windowed:
            attend = partial(self._attend_in_windows, block, grid)
        elif self.relative_positions is not None:
            attend = partial(self._attend_globally, block, grid)
        run = partial(self.vit.run, block, rope=rope, attend=attend)
        if self.with_cp and self.training and tokens.requires_grad:
            return checkpoint(run, tokens, use_reentrant=False)
        return run(tokens)

    def _with_relative_positions(
        self, block: Any, attention: Callable[..., Tensor], grid: tuple[int, int]
    ) -> Callable[..., Tensor]:
        """The attention of a block over a grid, with its relative positions if it has some."""
        if self.relative_positions is None:
            return attention

        def attend(tokens: Tensor) -> Tensor:
            bias = block.relative_positions(self.vit.query(block, tokens), grid)
            return attention(tokens, attn_mask=bias)

        return attend

    def _attend_globally(
        self,
        block: nn.Module,
        grid: tuple[int, int],
        attention: Callable[..., Tensor],
        tokens: Tensor,
        rope: Tensor | None,
    ) -> Tensor:
        """Attention of all tokens [B, P + N, D] with relative positions -> [B, P + N, D]."""
        return self._with_relative_positions(block, attention, grid)(tokens)

    def _attend_in_windows(
        self,
        block: nn.Module,
        grid: tuple[int, int],
        attention: Callable[..., Tensor],
        tokens: Tensor,
        rope: Tensor | None,
    ) -> Tensor:
        """Attention of normed tokens [B, P + N, D] in windows -> [B, P + N, D]."""
        assert self.window_size is not None
        num_images, num_prefix = len(tokens), self.vit.num_prefix_tokens
        prefix, patches = tokens[:, :num_prefix], tokens[:, num_prefix:]
        windows = partition_windows(patches, grid, self.window_size)  # [B * W, s * s, D]
        num_windows = len(windows) // num_images
        prefix = prefix.repeat_interleave(num_windows, dim=0)  # [B * W, P, D]
        joined = torch.cat([prefix, windows], dim=1)  # [B * W, P + s * s, D]
        window = (self.window_size, self.window_size)
        attention = self._with_relative_positions(block, attention, window)
        if rope is None:
            attended = attention(joined)
        else:
            attended = attention(joined, rope=self._rope_of_windows(rope, grid, num_images))
        prefix, windows = attended[:, :num_prefix], attended[:, num_prefix:]
        prefix = prefix.unflatten(0, (num_images, num_windows)).mean(dim=1)  # [B, P, D]
        return torch.cat([prefix, join_windows(windows, grid, self.window_size)], dim=1)

    def _rope_of_windows(self, rope: Tensor, grid: tuple[int, int], num_images: int) -> Tensor:
        """Rotary positions [N, 2 d] or [heads, N, 2 d] -> [B * W, 1 or heads, s * s, 2 d]."""
        assert self.window_size is not None
        by_head = rope if rope.ndim == 3 else rope[None]  # [H, N, 2 d]
        windows = partition_windows(by_head, grid, self.window_size)  # [H * W, s * s, 2 d]
        windows = windows.unflatten(0, (len(by_head), -1)).transpose(0, 1)  # [W, H, s * s, 2 d]
        return windows.repeat(num_images, 1, 1, 1)

    def _to_map(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        patches = tokens[:, self.vit.num_prefix_tokens :]  # [B, N, D]
        return patches.transpose(1, 2).unflatten(2, grid).contiguous()

    def layer_of(self, parameter_name: str) -> int:
        """Layer of a parameter for layer decay: 0 embedding, i + 1 block i, L + 1 the final norm.

        Raises:
            KeyError: No such parameter.
        """
        name = parameter_name.removeprefix("tower.")
        if name not in dict(self.trunk.named_parameters()):
            raise KeyError(parameter_name)
        return layer_of(self.trunk, name)

    def has_weight_decay(self, parameter_name: str, parameter: nn.Parameter) -> bool:
        """Matrices and kernels decay; vectors, tokens and position embeddings do not."""
        return has_weight_decay(self.trunk, parameter_name.removeprefix("tower."), parameter)


def _no_vit(trunk: nn.Module) -> ConfigError:
    name = type(trunk).__name__
    if len({info["reduction"] for info in getattr(trunk, "feature_info", ())}) > 1:
        return ConfigError(f"{name} has maps of several strides. Use MaskCLIPPyramid for it.")
    return ConfigError(
        f"{name} is no ViT that can be run block by block, and has no maps of several strides: "
        "neither MaskCLIPViT nor MaskCLIPPyramid can run it. Use timm's VisionTransformer, Eva, "
        "Beit or VisionTransformerRelPos, open_clip's ViT, or a trunk with stages."
    )
