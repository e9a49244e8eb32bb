"""`MaskCLIPViT`: a plain ViT of the benchmark as a backbone of mmseg and mmdet.

It runs the ViT (timm's or open_clip's) block by block, so that it can return the maps of several
blocks, take images of any size, and attend in windows. It is registered in mmengine's root
registry, where mmseg and mmdet both look, and does not clash with `MaskClipHead` of another work
called MaskCLIP (ECCV 2022).

Shapes: B images, P prefix tokens (class token, registers), N = h * w patches, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskclip_bench.backbones.openmmlab.token_grid import (
    join_windows,
    partition_windows,
    resample_positions,
    tile_positions,
)
from maskclip_bench.backbones.openmmlab.towers import depth_of, tower_of
from maskclip_bench.backbones.openmmlab.trunk_backbone import TrunkBackbone, resolve_indices
from maskclip_bench.errors import ConfigError


@MODELS.register_module()
class MaskCLIPViT(TrunkBackbone):
    """A plain ViT as an OpenMMLab backbone: images [B, 3, H, W] -> one map per `out_indices`.

    Args:
        out_indices: Blocks whose maps are returned, 0-based, ascending; negative ones count from
            the end. Blocks after the last one are removed.
        final_norm: Whether the trunk's last norm is applied to the map of its last block (the
            patch tokens that classification sees). Otherwise that norm is removed.
        frozen: No gradient, and evaluation mode even in training.
        drop_path_rate: Stochastic depth of the last block; the others grow to it linearly.
        with_cp: Gradient checkpointing (OpenMMLab's name): recompute blocks in the backward pass.
        window_size: Patches along a side of an attention window; None = every block is global.
            As in ViTDet, the attention alone runs in windows, which are padded with zeros at the
            bottom and right, after the norm. Prefix tokens, which ViTDet does not have, are
            copied into each window, and what they attend to is averaged over the windows.
        global_indices: Blocks that attend globally in spite of `window_size`.
        tile_positions: Repeat the position embeddings over the image instead of resampling them.
            With windows of the native grid, each window then looks like an image of pretraining
            (Bolya et al., 2023, arXiv 2311.05613).
        init_cfg: mmengine's; only None is taken, because the weights come from the source.
        source: Where the weights come from; see `TrunkSource` for its keys.

    Raises:
        ConfigError: The source is not a plain ViT, an index is out of range, `init_cfg` is given,
            blocks of this kind cannot attend in windows, or `tile_positions` goes with windows
            that are not the native grid.
        CheckpointError: The weights are missing or of another architecture.
    """

    def __init__(
        self,
        *,
        out_indices: Sequence[int] = (-1,),
        final_norm: bool = True,
        frozen: bool = False,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        window_size: int | None = None,
        global_indices: Sequence[int] = (),
        tile_positions: bool = False,
        init_cfg: dict | None = None,
        **source: Any,
    ) -> None:
        super().__init__(frozen=frozen, init_cfg=init_cfg)
        trunk = self.load_source(source)
        depth = depth_of(trunk)
        self.out_indices = resolve_indices(out_indices, depth, what="out_indices")
        num_blocks = self.out_indices[-1] + 1
        self.tower = tower_of(trunk, num_blocks)
        self.final_norm = final_norm and num_blocks == depth
        if not self.final_norm:
            self.tower.norm = nn.Identity()
        for index in range(num_blocks):
            self.tower.set_drop_path(index, drop_path_rate * index / max(depth - 1, 1))
        self.embed_dims = self.tower.embed_dim
        self.patch_size = self.tower.patch_size
        self.num_layers = num_blocks
        self.with_cp = with_cp
        self.window_size = window_size
        self.tile_positions = tile_positions
        global_blocks = resolve_indices(global_indices, depth, what="global_indices")
        self.windowed = [
            window_size is not None and index not in global_blocks for index in range(num_blocks)
        ]
        self._check_windows()
        self.freeze_if_asked()

    def _check_windows(self) -> None:
        size = self.window_size
        if self.tile_positions and self.tower.grid_size != (size, size):
            raise ConfigError(
                f"tile_positions repeats the native grid of {self.tower.grid_size[0]} x "
                f"{self.tower.grid_size[1]} patches and needs windows of that size; window_size is "
                f"{size}. Set window_size to the grid's side, or tile_positions=False."
            )
        for block, windowed in zip(self.tower.blocks, self.windowed, strict=True):
            if windowed and not isinstance(block, self.tower.block_type):
                raise ConfigError(
                    f"window_size goes with blocks of the type {self.tower.block_type.__name__}; "
                    f"this model has {type(block).__name__}. Set window_size=None."
                )

    def feature_maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images [B, 3, H, W] -> tuple of [B, D, H / patch, W / patch], contiguous.

        Raises:
            ValueError: H or W is no multiple of the patch size.
        """
        tokens, grid = self._embed(images)  # [B, P + N, D]
        outputs = []
        for index, block in enumerate(self.tower.blocks):
            tokens = self._run_block(block, tokens, grid, windowed=self.windowed[index])
            if index in self.out_indices:
                last = index == len(self.tower.blocks) - 1
                outputs.append(self._to_map(self.tower.norm(tokens) if last else tokens, grid))
        return tuple(outputs)

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        tower = self.tower
        (height, width), (patch_height, patch_width) = images.shape[-2:], self.patch_size
        if height % patch_height or width % patch_width:
            raise ValueError(
                f"Images of {height} x {width} pixels are no multiple of the patch size "
                f"{patch_height} x {patch_width}. Pad them in the data preprocessor: "
                "size_divisor (mmseg: also in its test_cfg) or pad_size_divisor (mmdet)."
            )
        maps = tower.patches(images)  # [B, D, h, w]
        grid = (maps.shape[-2], maps.shape[-1])
        tokens = maps.flatten(2).transpose(1, 2)  # [B, N, D]
        prefix_positions, positions = tower.positions()
        if positions is not None:
            arrange = tile_positions if self.tile_positions else resample_positions
            tokens = tokens + arrange(positions, tower.grid_size, grid)
        prefix = tower.prefix()
        if prefix is not None:
            if prefix_positions is not None:
                prefix = prefix + prefix_positions
            prefix = prefix.to(tokens.dtype).expand(len(tokens), -1, -1)
            tokens = torch.cat([prefix, tokens], dim=1)
        return tower.norm_pre(tokens), grid

    def _run_block(
        self, block: nn.Module, tokens: Tensor, grid: tuple[int, int], *, windowed: bool
    ) -> Tensor:
        run = partial(self._call, block)
        if windowed:
            run = partial(
                self.tower.run_windowed, block, attend=partial(self._attend_in_windows, grid)
            )
        if self.with_cp and self.training and tokens.requires_grad:
            return checkpoint(run, tokens, use_reentrant=False)
        return run(tokens)

    def _attend_in_windows(
        self, grid: tuple[int, int], attention: Callable[[Tensor], Tensor], tokens: Tensor
    ) -> Tensor:
        """Attention of normed tokens [B, P + N, D] in windows -> [B, P + N, D]."""
        assert self.window_size is not None
        num_images, num_prefix = len(tokens), self.tower.num_prefix_tokens
        prefix, patches = tokens[:, :num_prefix], tokens[:, num_prefix:]
        windows = partition_windows(patches, grid, self.window_size)  # [B * W, s * s, D]
        num_windows = len(windows) // num_images
        prefix = prefix.repeat_interleave(num_windows, dim=0)  # [B * W, P, D]
        attended = attention(torch.cat([prefix, windows], dim=1))  # [B * W, P + s * s, D]
        prefix, windows = attended[:, :num_prefix], attended[:, num_prefix:]
        prefix = prefix.unflatten(0, (num_images, num_windows)).mean(dim=1)  # [B, P, D]
        return torch.cat([prefix, join_windows(windows, grid, self.window_size)], dim=1)

    def _call(self, block: nn.Module, tokens: Tensor) -> Tensor:
        if getattr(self.tower, "batch_first", True):
            return block(tokens)
        return block(tokens.transpose(0, 1)).transpose(0, 1)

    def _to_map(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        patches = tokens[:, self.tower.num_prefix_tokens :]  # [B, N, D]
        return patches.transpose(1, 2).unflatten(2, grid).contiguous()

    def layer_of(self, parameter_name: str) -> int:
        """Layer of a parameter for layer decay: 0 embedding, i + 1 block i, L + 1 the final norm.

        Raises:
            KeyError: No such parameter.
        """
        name = parameter_name.removeprefix("tower.")
        if name.startswith(self.tower.block_prefix):
            return int(name.removeprefix(self.tower.block_prefix).split(".")[0]) + 1
        if name.startswith(self.tower.embedding_names):
            return 0
        if name.startswith("norm."):
            return self.num_layers + 1
        raise KeyError(parameter_name)

    def has_weight_decay(self, parameter_name: str, parameter: nn.Parameter) -> bool:
        """Matrices and kernels decay; vectors, tokens and position embeddings do not."""
        name = parameter_name.removeprefix("tower.")
        exempt = (
            "cls_token", "dist_token", "reg_token", "pos_embed", "class_embedding",
            "positional_embedding",
        )  # fmt: skip
        return parameter.ndim > 1 and not name.startswith(exempt)
