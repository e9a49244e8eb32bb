"""ViTs for dense tasks: more kinds than pretraining needs, and what a dense task changes of them.

`dense_parts` also takes ViTs whose positions are a bias of the attention (timm's `Beit` and
`VisionTransformerRelPos`). Their patches cannot be dropped, and the bias has the size of one grid,
which timm's `set_input_size` changes. The other functions cut a trunk to what its maps need.

B images, N patches on a grid of h x w, P prefix tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer as OpenClipVisionTransformer
from timm.layers.drop import DropPath, drop_path
from timm.models.beit import Beit
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn

from maskclip_bench.errors import ConfigError
from maskclip_bench.modeling.vit import Attend, Ropes, TimmViT, ViT, is_vit, vit_parts

AFTER_THE_MAPS = ("head", "head_dist", "head_drop", "fc_norm", "attn_pool", "patch_drop")
"""Modules of timm's ViTs that no map depends on."""

TOKENS = (
    "cls_token", "dist_token", "reg_token", "pos_embed", "class_embedding", "positional_embedding",
)  # fmt: skip
"""Parameters that get no weight decay whatever their shape."""


class RelativeViT(TimmViT):
    """timm's `Beit` and `VisionTransformerRelPos`: a bias of the attention for one grid.

    A bias that all blocks share takes the place of rotary positions: `ropes` gives it, `run` takes
    it.
    """

    def positions(self) -> tuple[Tensor | None, Tensor | None]:
        """`Beit` may have a table for the class token and the patches."""
        table = getattr(self.trunk, "pos_embed", None)
        if table is None:
            return None, None
        return table[:, : self.num_prefix_tokens], table[:, self.num_prefix_tokens :]

    def ropes(self, grid_size: tuple[int, int] | None = None) -> Ropes | None:
        """The bias that all blocks share [1, heads, P + N, P + N], once for each; None if none.

        Raises:
            ConfigError: The grid is not the trunk's own.
        """
        self.check_grid(grid_size or self.grid_size)
        shared = getattr(self.trunk, "rel_pos_bias", None)  # Beit
        if shared is not None:
            return [shared()] * len(self.blocks)
        shared = getattr(self.trunk, "shared_rel_pos", None)
        return None if shared is None else [shared.get_bias()] * len(self.blocks)

    def check_grid(self, grid: tuple[int, int]) -> None:
        """Check the grid of the images.

        Raises:
            ConfigError: It is not the trunk's own.
        """
        if grid != self.grid_size:
            raise _one_grid(self, grid)

    def before_blocks(self, tokens: Tensor) -> Tensor:
        """`Beit` has dropout there."""
        dropout = getattr(self.trunk, "pos_drop", None)
        return tokens if dropout is None else dropout(tokens)

    def attends_separately(self, block: nn.Module) -> bool:
        """Never: a window would need a bias of its own."""
        return False

    def run(
        self,
        block: nn.Module,
        tokens: Tensor,
        *,
        rope: Tensor | None = None,
        attend: Attend | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """One block; `rope` is the shared bias."""
        name = "shared_rel_pos_bias" if isinstance(self.trunk, Beit) else "shared_rel_pos"
        part: Any = block
        return part(tokens, **{name: rope}, **kwargs)


def _one_grid(vit: ViT, grid: tuple[int, int]) -> ConfigError:
    own = " x ".join(map(str, vit.grid_size))
    pixels = [cells * side for cells, side in zip(vit.grid_size, vit.patch_size, strict=True)]
    return ConfigError(
        f"The relative positions of this {type(vit.trunk).__name__} are made for a grid of {own} "
        f"patches ({' x '.join(map(str, pixels))} pixels); the images have {grid[0]} x {grid[1]}. "
        "Set img_size=(height, width) of the backbone, which resizes them once, and give it images "
        "of that size alone (crops in training, mode='slide' in testing)."
    )


def dense_parts(trunk: nn.Module) -> ViT:
    """The parts of a trunk, for a pass over all of its patches.

    Raises:
        ConfigError: It is no ViT that is known here.
    """
    if isinstance(trunk, Beit | VisionTransformerRelPos):
        return RelativeViT(trunk)  # type: ignore[arg-type]
    return vit_parts(trunk)


def is_dense_vit(trunk: nn.Module) -> bool:
    """Whether `dense_parts` takes a trunk."""
    return is_vit(trunk) or isinstance(trunk, Beit | VisionTransformerRelPos)


def resample_positions(positions: Tensor, native: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Bicubic resampling of position embeddings [1, n, D] from the `native` grid to `grid`.

    Computed in float32, corners not aligned, smoothed when the grid shrinks (as timm's
    `resample_abs_pos_embed`). The native grid comes back bit for bit.
    """
    if native == grid:
        return positions
    maps = positions.float().unflatten(1, native).permute(0, 3, 1, 2)  # [1, D, h, w]
    maps = F.interpolate(maps, size=grid, mode="bicubic", align_corners=False, antialias=True)
    return maps.flatten(2).transpose(1, 2).to(positions.dtype)


def set_input_size(trunk: Any, size: tuple[int, int]) -> None:
    """Resample positions once, as timm does it, for images of `size` (height, width).

    Raises:
        ConfigError: Patches do not divide the size.
    """
    vit = dense_parts(trunk)
    if any(side % patch for side, patch in zip(size, vit.patch_size, strict=True)):
        raise ConfigError(
            f"img_size={tuple(size)} is no multiple of the patch size {vit.patch_size}. Set a "
            "multiple."
        )
    if not isinstance(trunk, OpenClipVisionTransformer):
        trunk.set_input_size(img_size=tuple(size))
        return
    rows, columns = (side // patch for side, patch in zip(size, vit.patch_size, strict=True))
    table = trunk.positional_embedding
    patches = resample_positions(table.detach()[None, 1:], vit.grid_size, (rows, columns))[0]
    trunk.positional_embedding = nn.Parameter(
        torch.cat([table.detach()[:1], patches]), requires_grad=table.requires_grad
    )
    trunk.image_size, trunk.grid_size = tuple(size), (rows, columns)


def keep_blocks(trunk: Any, number: int, *, norm: bool) -> None:
    """Remove what the maps of the first `number` blocks do not depend on.

    Args:
        trunk: Changed in place.
        number: Of blocks kept.
        norm: Whether the last norm is kept.
    """
    if isinstance(trunk, OpenClipVisionTransformer):
        trunk.transformer.resblocks = trunk.transformer.resblocks[:number]
        trunk.patch_dropout = nn.Identity()
        trunk.proj = None
        if trunk.attn_pool is not None:
            trunk.attn_pool = nn.Identity()  # not None: the norm belongs to it
            if hasattr(trunk, "attn_pool_contrastive"):
                trunk.attn_pool_contrastive = None
            trunk.ln_post = nn.Identity()
        elif not norm:
            trunk.ln_post = nn.Identity()
        return
    trunk.blocks = trunk.blocks[:number]
    for name in AFTER_THE_MAPS:
        if isinstance(getattr(trunk, name, None), nn.Module):
            setattr(trunk, name, nn.Identity())
    if not norm:
        trunk.norm = nn.Identity()


def set_drop_path(block: Any, rate: float) -> None:
    """Stochastic depth in both branches of a block.

    Raises:
        ConfigError: The block has no place for it.
    """
    names = [name for name in ("drop_path1", "drop_path2") if hasattr(block, name)]
    for name in names:
        setattr(block, name, DropPath(rate) if rate else nn.Identity())
    if names or not rate:
        return
    if not all(hasattr(block, name) for name in ("ls_1", "ls_2")):
        raise ConfigError(
            f"A {type(block).__name__} has no stochastic depth. Set drop_path_rate=0."
        )
    for scale in (block.ls_1, block.ls_2):  # open_clip: what comes last in each branch
        scale.register_forward_hook(_DropBranch(rate))


class _DropBranch:
    """Forward hook that drops a branch of some images in training; the module keeps its names."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return drop_path(output, self.rate, module.training)


def layer_of(trunk: nn.Module, parameter: str) -> int:
    """Layer of a parameter for layer decay: 0 embedding, i + 1 block i, L + 1 the final norm.

    Args:
        trunk: After `keep_blocks`.
        parameter: Its name in the trunk.
    """
    own = isinstance(trunk, OpenClipVisionTransformer)
    blocks, norm = ("transformer.resblocks.", "ln_post.") if own else ("blocks.", "norm.")
    if parameter.startswith(blocks):
        return int(parameter.removeprefix(blocks).split(".")[0]) + 1
    if parameter.startswith(norm):
        return len(dense_parts(trunk).blocks) + 1
    return 0


def has_weight_decay(trunk: Any, parameter: str, value: nn.Parameter) -> bool:
    """Matrices and kernels decay; vectors, tokens, positions and what timm exempts do not."""
    exempt = set(getattr(trunk, "no_weight_decay", set)())
    return value.ndim > 1 and not parameter.startswith(TOKENS) and parameter not in exempt


def stages(trunk: Any) -> list[list[nn.Parameter | nn.Module]]:
    """What is before the first block (parameters and modules), then each block."""
    vit = dense_parts(trunk)
    later = {id(value) for block in vit.blocks for value in block.parameters()}
    later |= {
        id(value)
        for name, value in trunk.named_parameters()
        if name.startswith(("norm.", "ln_post."))
    }
    first: list[nn.Parameter | nn.Module] = [
        value for value in trunk.parameters() if id(value) not in later
    ]
    first += [
        module
        for name, module in trunk.named_children()
        if name not in ("blocks", "transformer", "norm", "ln_post")
    ]
    found: list[list[nn.Parameter | nn.Module]] = [first]
    found += [[block] for block in vit.blocks]
    return found
