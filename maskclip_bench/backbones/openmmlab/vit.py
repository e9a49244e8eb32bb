"""Backbones for mmseg and mmdet from any encoder of the benchmark.

`MaskCLIPViT` runs a plain ViT (timm's or open_clip's) block by block, so that it can return the
maps of several blocks, take images of any size, and attend in windows. `MaskCLIPPyramid` returns
the stages of a convolutional or hierarchical timm model (ConvNeXt, Swin, ResNet). Both are
registered in mmengine's root registry, where mmseg and mmdet both look.

The names stand beside `MaskClipHead` of another work called MaskCLIP (ECCV 2022) without clash.

Shapes: B images, P prefix tokens (class token, registers), N = h * w patches, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from open_clip.transformer import ResidualAttentionBlock
from open_clip.transformer import VisionTransformer as OpenClipVisionTransformer
from timm.layers import DropPath, PatchEmbed
from timm.models._features import FeatureGetterNet
from timm.models._manipulate import group_with_matcher
from timm.models.vision_transformer import Block
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskclip_bench.backbones.openmmlab.sources import load_trunk
from maskclip_bench.errors import ConfigError

Attend = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
"""(attention, normed tokens [B, P + N, D]) -> its output [B, P + N, D], computed in windows."""


class _TimmTower(nn.Module):
    """A timm `VisionTransformer` in parts, without what gives no feature map.

    Raises:
        ConfigError: Its stem is more than one convolution, or it has tokens not known here.
    """

    block_type = Block

    def __init__(self, trunk: TimmVisionTransformer, num_blocks: int) -> None:
        super().__init__()
        if not isinstance(trunk.patch_embed, PatchEmbed):
            raise ConfigError(
                f"MaskCLIPViT cuts images into patches with one convolution; this model has a "
                f"{type(trunk.patch_embed).__name__}. Use a ViT without a hybrid stem."
            )
        self.patch_embed = trunk.patch_embed
        for name in ("cls_token", "dist_token", "reg_token", "pos_embed"):
            self.register_parameter(name, getattr(trunk, name, None))
        self.norm_pre = trunk.norm_pre
        self.blocks = trunk.blocks[:num_blocks]
        self.norm = trunk.norm
        self.pos_covers_prefix = not trunk.no_embed_class
        self.num_prefix_tokens: int = trunk.num_prefix_tokens
        self.embed_dim: int = trunk.embed_dim
        self.patch_size: tuple[int, int] = tuple(trunk.patch_embed.patch_size)
        self.grid_size: tuple[int, int] = tuple(trunk.patch_embed.grid_size)
        self.embedding_names = (
            "patch_embed", "cls_token", "dist_token", "reg_token", "pos_embed", "norm_pre",
        )  # fmt: skip
        self.block_prefix = "blocks."
        prefix = self.prefix()
        num_known = 0 if prefix is None else prefix.shape[1]
        if num_known != self.num_prefix_tokens:
            raise ConfigError(
                f"{type(trunk).__name__} has {self.num_prefix_tokens} prefix tokens, of which "
                f"{num_known} are known here (cls_token, dist_token, reg_token). Use another ViT."
            )

    def patches(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D, h, w]."""
        maps = self.patch_embed.proj(images)
        if isinstance(self.patch_embed.norm, nn.Identity):
            return maps
        return self.patch_embed.norm(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def prefix(self) -> Tensor | None:
        """Prefix tokens [1, P, D], without positions."""
        known = (self.cls_token, self.dist_token, self.reg_token)
        tokens = [token for token in known if token is not None]
        return torch.cat(tokens, dim=1) if tokens else None

    def positions(self) -> tuple[Tensor | None, Tensor | None]:
        """Position embeddings of the prefix [1, P, D] and of the patches [1, N, D]."""
        if self.pos_embed is None:
            return None, None
        if not self.pos_covers_prefix or not self.num_prefix_tokens:
            return None, self.pos_embed
        return self.pos_embed[:, : self.num_prefix_tokens], self.pos_embed[
            :, self.num_prefix_tokens :
        ]

    def run_windowed(self, block: nn.Module, tokens: Tensor, attend: Attend) -> Tensor:
        """A block [B, P + N, D] -> [B, P + N, D] whose attention alone runs in windows."""
        attended = attend(block.attn, block.norm1(tokens))
        tokens = tokens + block.drop_path1(block.ls1(attended))
        return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))

    def set_drop_path(self, index: int, rate: float) -> None:
        """Stochastic depth in both branches of a block."""
        for name in ("drop_path1", "drop_path2"):
            if hasattr(self.blocks[index], name):
                setattr(self.blocks[index], name, DropPath(rate) if rate else nn.Identity())


class _OpenClipTower(nn.Module):
    """open_clip's own `VisionTransformer` in parts, without pooling and projection.

    CoCa's last norm comes after its pooler, whose width it has: the map has none there.
    """

    block_type = ResidualAttentionBlock

    def __init__(self, trunk: OpenClipVisionTransformer, num_blocks: int) -> None:
        super().__init__()
        self.conv1 = trunk.conv1
        self.class_embedding = trunk.class_embedding
        self.positional_embedding = trunk.positional_embedding
        self.ln_pre = trunk.ln_pre
        self.blocks = trunk.transformer.resblocks[:num_blocks]
        self.norm = trunk.ln_post if trunk.attn_pool is None else nn.Identity()
        self.batch_first: bool = getattr(trunk.transformer, "batch_first", True)
        self.num_prefix_tokens = 1
        self.embed_dim: int = trunk.conv1.out_channels
        self.patch_size: tuple[int, int] = tuple(trunk.patch_size)
        self.grid_size: tuple[int, int] = tuple(trunk.grid_size)
        self.embedding_names = ("conv1", "class_embedding", "positional_embedding", "ln_pre")
        self.block_prefix = "blocks."

    def patches(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D, h, w]."""
        return self.conv1(images)

    def prefix(self) -> Tensor | None:
        """The class token [1, 1, D], without its position."""
        return self.class_embedding[None, None]

    def positions(self) -> tuple[Tensor | None, Tensor | None]:
        """Position embeddings of the class token [1, 1, D] and of the patches [1, N, D]."""
        return self.positional_embedding[None, :1], self.positional_embedding[None, 1:]

    def norm_pre(self, tokens: Tensor) -> Tensor:
        """CLIP's norm before the blocks."""
        return self.ln_pre(tokens)

    def run_windowed(self, block: nn.Module, tokens: Tensor, attend: Attend) -> Tensor:
        """A block [B, P + N, D] -> [B, P + N, D] whose attention alone runs in windows."""

        def attention(windows: Tensor) -> Tensor:
            if self.batch_first:
                return block.attention(windows)
            return block.attention(windows.transpose(0, 1)).transpose(0, 1)

        tokens = tokens + block.ls_1(attend(attention, block.ln_1(tokens)))
        return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))

    def set_drop_path(self, index: int, rate: float) -> None:
        """Stochastic depth in both branches of a block, after its layer scale."""
        block = self.blocks[index]
        for name in ("ls_1", "ls_2"):
            if rate:
                setattr(block, name, nn.Sequential(getattr(block, name), DropPath(rate)))


@MODELS.register_module()
class MaskCLIPViT(BaseModule):
    """A plain ViT as an OpenMMLab backbone: images [B, 3, H, W] -> one map per `out_indices`.

    Args:
        backbone: A row of `backbones/*.yaml`.
        checkpoint: An exported folder, a pretraining run's folder, or with `timm` a file.
        timm: A timm model name.
        open_clip: An open_clip model name.
        pretrained: For `timm` a bool, for `open_clip` a tag; see `sources`.
        weights: "student" or "teacher" of a pretraining run.
        seed: Which repetition of the row's pretraining.
        model_args: More for timm's `create_model`.
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

    Raises:
        ConfigError: The source is not a plain ViT, an index is out of range, `init_cfg` is given,
            blocks of this kind cannot attend in windows, or `tile_positions` goes with windows
            that are not the native grid.
        CheckpointError: The weights are missing or of another architecture.
    """

    def __init__(
        self,
        *,
        backbone: str | None = None,
        checkpoint: str | None = None,
        timm: str | None = None,
        open_clip: str | None = None,
        pretrained: bool | str = False,
        weights: str = "student",
        seed: int = 0,
        model_args: dict[str, Any] | None = None,
        out_indices: Sequence[int] = (-1,),
        final_norm: bool = True,
        frozen: bool = False,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        window_size: int | None = None,
        global_indices: Sequence[int] = (),
        tile_positions: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__()
        _refuse_init_cfg(init_cfg)
        trunk = load_trunk(
            backbone=backbone,
            checkpoint=checkpoint,
            timm_model=timm,
            open_clip_model=open_clip,
            pretrained=pretrained,
            weights=weights,
            seed=seed,
            **(model_args or {}),
        )
        depth = _depth_of(trunk)
        self.out_indices = _resolve_indices(out_indices, depth, what="out_indices")
        global_blocks = _resolve_indices(global_indices, depth, what="global_indices")
        num_blocks = self.out_indices[-1] + 1
        self.tower = (
            _OpenClipTower(trunk, num_blocks)
            if isinstance(trunk, OpenClipVisionTransformer)
            else _TimmTower(trunk, num_blocks)
        )
        self.final_norm = final_norm and num_blocks == depth
        if not self.final_norm:
            self.tower.norm = nn.Identity()
        for index in range(num_blocks):
            self.tower.set_drop_path(index, drop_path_rate * index / max(depth - 1, 1))
        self.embed_dims = self.tower.embed_dim
        self.patch_size = self.tower.patch_size
        self.num_layers = num_blocks
        self.frozen = frozen
        self.with_cp = with_cp
        self.window_size = window_size
        self.tile_positions = tile_positions
        if tile_positions and self.tower.grid_size != (window_size, window_size):
            raise ConfigError(
                f"tile_positions repeats the native grid of {self.tower.grid_size[0]} x "
                f"{self.tower.grid_size[1]} patches and needs windows of that size; window_size is "
                f"{window_size}. Set window_size to the grid's side, or tile_positions=False."
            )
        self.windowed = [
            window_size is not None and index not in global_blocks for index in range(num_blocks)
        ]
        for block, windowed in zip(self.tower.blocks, self.windowed, strict=True):
            if windowed and not isinstance(block, self.tower.block_type):
                raise ConfigError(
                    f"window_size goes with blocks of the type {self.tower.block_type.__name__}; "
                    f"this model has {type(block).__name__}. Set window_size=None."
                )
        if frozen:
            self.requires_grad_(False)
            self.eval()

    def init_weights(self) -> None:
        """Keep the weights: mmengine would let timm modules draw them anew."""
        self._is_init = True

    def train(self, mode: bool = True) -> MaskCLIPViT:
        """A frozen backbone stays in evaluation mode."""
        super().train(mode and not self.frozen)
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images [B, 3, H, W] -> tuple of [B, D, H / patch, W / patch], contiguous.

        Raises:
            ValueError: H or W is no multiple of the patch size.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self._forward(images)

    def _forward(self, images: Tensor) -> tuple[Tensor, ...]:
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


@MODELS.register_module()
class MaskCLIPPyramid(BaseModule):
    """A convolutional or hierarchical timm trunk: images -> one map per stage asked for.

    Args:
        backbone: As in `MaskCLIPViT`, as the following ones.
        checkpoint: An exported folder, a run's folder, or with `timm` a file.
        timm: A timm model name.
        open_clip: An open_clip model name with a timm trunk.
        pretrained: For `timm` a bool, for `open_clip` a tag.
        weights: "student" or "teacher".
        seed: Which repetition of the row's pretraining.
        model_args: More for timm's `create_model`, e.g. `img_size` for Swin.
        out_indices: Stages whose maps are returned; negative ones count from the end.
        frozen: No gradient, and evaluation mode even in training.
        drop_path_rate: Stochastic depth of the last block; the others grow to it linearly. None
            leaves what the trunk was made with.
        num_layers: L of the layer decay. Stages count one layer each, and the stem is layer 0; a
            larger L than stages puts them all further from the heads, as in ConvNeXt's recipes.
            None = the number of stages.
        with_cp: Gradient checkpointing, where the trunk has it.
        init_cfg: mmengine's; only None is taken, because the weights come from the source.

    Attributes:
        strides: Pixels per cell of each map.
        channels: Channels of each map.

    Raises:
        ConfigError: The trunk has no stages or no stochastic depth, an index is out of range,
            `num_layers` is too small, or `init_cfg` is given.
        CheckpointError: The weights are missing or of another architecture.
    """

    def __init__(
        self,
        *,
        backbone: str | None = None,
        checkpoint: str | None = None,
        timm: str | None = None,
        open_clip: str | None = None,
        pretrained: bool | str = False,
        weights: str = "student",
        seed: int = 0,
        model_args: dict[str, Any] | None = None,
        out_indices: Sequence[int] = (-4, -3, -2, -1),
        frozen: bool = False,
        drop_path_rate: float | None = None,
        num_layers: int | None = None,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__()
        _refuse_init_cfg(init_cfg)
        trunk = load_trunk(
            backbone=backbone,
            checkpoint=checkpoint,
            timm_model=timm,
            open_clip_model=open_clip,
            pretrained=pretrained,
            weights=weights,
            seed=seed,
            **(model_args or {}),
        )
        if not hasattr(trunk, "feature_info") or not hasattr(trunk, "forward_intermediates"):
            raise ConfigError(
                f"{type(trunk).__name__} has no stages to return. Use MaskCLIPViT for a plain ViT."
            )
        if with_cp:
            trunk.set_grad_checkpointing(True)
        _take_any_size(trunk)
        if drop_path_rate is not None:
            _set_drop_path(trunk, drop_path_rate)
        indices = _resolve_indices(out_indices, len(trunk.feature_info), what="out_indices")
        layers = group_with_matcher(
            trunk.named_parameters(), trunk.group_matcher(coarse=True), reverse=True
        )
        self._layers: dict[str, int] = {name: int(layer) for name, layer in layers.items()}
        exempt = getattr(trunk, "no_weight_decay", set)()
        self._exempt = frozenset(exempt)
        self.trunk = FeatureGetterNet(
            trunk, out_indices=list(indices), norm=False, output_fmt="NCHW"
        )
        kept = [name for name, _ in self.trunk.model.named_parameters()]
        deepest = max(self._layers[name] for name in kept)
        if num_layers is not None and num_layers < deepest:
            raise ConfigError(f"num_layers={num_layers} is less than the {deepest} stages in use.")
        self.num_layers = deepest if num_layers is None else num_layers
        self.channels: list[int] = self.trunk.feature_info.channels()
        self.strides: list[int] = self.trunk.feature_info.reduction()
        self.embed_dims = self.channels[-1]
        self.out_indices = indices
        self.frozen = frozen
        if frozen:
            self.requires_grad_(False)
            self.eval()

    def init_weights(self) -> None:
        """Keep the weights: mmengine would let timm modules draw them anew."""
        self._is_init = True

    def train(self, mode: bool = True) -> MaskCLIPPyramid:
        """A frozen backbone stays in evaluation mode."""
        super().train(mode and not self.frozen)
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images [B, 3, H, W] -> tuple of [B, channels, H / stride, W / stride], contiguous."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return tuple(feature.contiguous() for feature in self.trunk(images))

    def layer_of(self, parameter_name: str) -> int:
        """Layer of a parameter, in timm's own grouping: stem 0, stage i + 1.

        Raises:
            KeyError: No such parameter.
        """
        return self._layers[parameter_name.removeprefix("trunk.model.")]

    def has_weight_decay(self, parameter_name: str, parameter: nn.Parameter) -> bool:
        """Matrices and kernels decay; vectors and what timm exempts do not."""
        name = parameter_name.removeprefix("trunk.model.")
        return parameter.ndim > 1 and not any(part in name for part in self._exempt)


def _refuse_init_cfg(init_cfg: object) -> None:
    if init_cfg is not None:
        raise ConfigError(
            f"init_cfg={init_cfg!r}: the weights of this backbone come from its source. Set "
            "backbone=, checkpoint=, timm= or open_clip= instead."
        )


def _take_any_size(trunk: nn.Module) -> None:
    """Let a trunk with window masks (Swin) take images of any size, its windows as they are."""
    for module in trunk.modules():
        if hasattr(module, "strict_img_size"):
            module.strict_img_size = False
        if hasattr(module, "dynamic_mask"):
            module.dynamic_mask = True


def _set_drop_path(trunk: nn.Module, rate: float) -> None:
    """Stochastic depth in all residual branches, growing from block to block."""
    blocks = [names for module in trunk.modules() if (names := list(_drop_paths(module)))]
    if not blocks:
        raise ConfigError(
            f"{type(trunk).__name__} has no stochastic depth. Set drop_path_rate=None."
        )
    for index, sites in enumerate(blocks):
        block_rate = rate * index / max(len(blocks) - 1, 1)
        for module, name in sites:
            setattr(module, name, DropPath(block_rate) if block_rate else nn.Identity())


def _drop_paths(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for name in ("drop_path", "drop_path1", "drop_path2"):
        if isinstance(getattr(module, name, None), nn.Module):
            yield module, name


def _depth_of(trunk: nn.Module) -> int:
    if isinstance(trunk, OpenClipVisionTransformer):
        return len(trunk.transformer.resblocks)
    if isinstance(trunk, TimmVisionTransformer):
        return len(trunk.blocks)
    raise ConfigError(
        f"MaskCLIPViT runs timm's VisionTransformer and open_clip's ViT; this is a "
        f"{type(trunk).__name__}. Use MaskCLIPPyramid for it."
    )


def _resolve_indices(indices: Sequence[int], depth: int, *, what: str) -> tuple[int, ...]:
    resolved = sorted({index + depth if index < 0 else index for index in indices})
    if any(not 0 <= index < depth for index in resolved) or (what == "out_indices" and not indices):
        raise ConfigError(
            f"{what}={tuple(indices)} for {depth} blocks or stages: use numbers from 0 to "
            f"{depth - 1}, or from {-depth} to -1."
        )
    return tuple(resolved)


def resample_positions(positions: Tensor, native: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Bicubic resampling of position embeddings [1, n, D] from the `native` grid to `grid`.

    Computed in float32, corners not aligned, smoothed when the grid shrinks. The native grid
    comes back bit for bit.
    """
    if native == grid:
        return positions
    maps = positions.float().unflatten(1, native).permute(0, 3, 1, 2)  # [1, D, h, w]
    maps = F.interpolate(maps, size=grid, mode="bicubic", align_corners=False, antialias=True)
    return maps.flatten(2).transpose(1, 2).to(positions.dtype)


def tile_positions(positions: Tensor, native: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Position embeddings [1, n, D] of the `native` grid, repeated until they cover `grid`."""
    rows, columns = (-(-size // own) for size, own in zip(grid, native, strict=True))
    maps = positions.unflatten(1, native).repeat(1, rows, columns, 1)  # [1, h', w', D]
    return maps[:, : grid[0], : grid[1]].flatten(1, 2)


def partition_windows(patches: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """[B, h * w, D] -> [B * W, size * size, D]; zeros fill the last windows."""
    (height, width), dim = grid, patches.shape[-1]
    maps = patches.unflatten(1, grid)  # [B, h, w, D]
    maps = F.pad(maps, (0, 0, 0, -width % size, 0, -height % size))
    rows, columns = maps.shape[1] // size, maps.shape[2] // size
    maps = maps.view(len(maps), rows, size, columns, size, dim).transpose(2, 3)
    return maps.reshape(-1, size * size, dim)


def join_windows(windows: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """The inverse of `partition_windows`: [B * W, size * size, D] -> [B, h * w, D]."""
    height, width = grid
    rows, columns = -(-height // size), -(-width // size)
    maps = windows.view(-1, rows, columns, size, size, windows.shape[-1]).transpose(2, 3)
    maps = maps.reshape(-1, rows * size, columns * size, windows.shape[-1])
    return maps[:, :height, :width].flatten(1, 2)
