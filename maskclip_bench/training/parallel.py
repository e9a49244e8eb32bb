"""One device, replicas on several (DDP), or weights in shards over several (FSDP2).

All three answer the same few questions: how to run the method on a batch, how gradients become
those of the global batch, and how the whole state is read and restored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from maskclip_bench import distributed
from maskclip_bench.data.batch import Batch
from maskclip_bench.errors import ConfigError
from maskclip_bench.training.checkpoint import restore_module

if TYPE_CHECKING:
    from maskclip_bench.pretrain.methods.base import Method

State = dict[str, Any]


class Replicas:
    """The whole method on each device; gradients are averaged over devices.

    In one process it is the method and nothing else.
    """

    def __init__(self, method: Method, *, device: torch.device, accumulates: bool) -> None:
        """Wrap the method; with `accumulates`, gradients are averaged after the last micro-batch.

        Args:
            method: On its device.
            device: Where it is.
            accumulates: Whether `accumulation.accumulated_backward` runs it.
        """
        self.method = method
        self._average_later = accumulates and distributed.is_distributed()
        self._forward: nn.Module = method
        if distributed.is_distributed() and not accumulates:
            # A static graph also covers parameters that no loss of the method uses.
            self._forward = DistributedDataParallel(
                method,
                device_ids=[device] if device.type == "cuda" else None,
                broadcast_buffers=False,  # the methods keep their statistics equal on all ranks
                gradient_as_bucket_view=True,
                static_graph=True,
            )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The method's loss terms."""
        return self._forward(batch)

    def finish_gradients(self) -> None:
        """Average what the backward pass has not averaged itself."""
        if self._average_later:
            average_gradients(self.method.parameters())

    def state(self, optimizer: torch.optim.Optimizer) -> tuple[State, State]:
        """State of method and optimizer, whole, on the main process (elsewhere too)."""
        return self.method.state_dict(), optimizer.state_dict()

    def restore(
        self, optimizer: torch.optim.Optimizer, method_state: State, optimizer_state: State
    ) -> None:
        """Load what `state` gave.

        Raises:
            CheckpointError: It is of another model.
        """
        restore_module(self.method, method_state, where="the checkpoint")
        optimizer.load_state_dict(optimizer_state)


class Shards:
    """Every parameter in shards over the devices, block by block (FSDP2)."""

    def __init__(self, method: Method, *, device: torch.device, bf16: bool) -> None:
        """Shard the method's blocks, and what is outside of them.

        Args:
            method: On its device, the same on every rank.
            device: Where it is.
            bf16: Gather weights in bf16; gradients are still reduced in fp32.

        Raises:
            ConfigError: There is only one process.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import (
            MixedPrecisionPolicy,
            fully_shard,
            register_fsdp_forward_method,
        )

        if not distributed.is_distributed():
            raise ConfigError(
                "parallel=fsdp shards weights over several processes, and there is one. Start "
                "with torchrun --nproc-per-node N, or set parallel=ddp."
            )
        self.method = method
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32
        )
        # The method's own inputs stay as they are: images are also targets, and losses between
        # embeddings are in fp32. Autocast casts what an operation wants in bf16.
        outer_policy = dataclasses.replace(policy, cast_forward_inputs=False)
        mesh = init_device_mesh(device.type, (distributed.world_size(),))
        # FSDP2 takes no scalars (the logit scale): they stay whole, and are averaged by hand, in an
        # order that is the same on every rank.
        self._whole = [parameter for parameter in method.parameters() if parameter.ndim == 0]
        for block in transformer_blocks(method):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(method, mesh=mesh, mp_policy=outer_policy, ignored_params=set(self._whole))
        for name in ("encode", "contrast"):
            register_fsdp_forward_method(method, name)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The method's loss terms."""
        return self.method(batch)

    def finish_gradients(self) -> None:
        """Average the gradients of what is not sharded."""
        average_gradients(self._whole)

    def state(self, optimizer: torch.optim.Optimizer) -> tuple[State, State]:
        """State of method and optimizer, gathered whole on the main process.

        It reads like that of `Replicas`: a run may go on in either way.
        """
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        method_state, optimizer_state = get_state_dict(self.method, optimizer, options=options)
        return method_state, _numbered(optimizer_state) if distributed.is_main() else {}

    def restore(
        self, optimizer: torch.optim.Optimizer, method_state: State, optimizer_state: State
    ) -> None:
        """Load what `state` gave, each rank its shards."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

        set_state_dict(
            self.method,
            optimizer,
            model_state_dict=method_state,
            optim_state_dict=_named(optimizer_state, optimizer, self.method),
            options=StateDictOptions(full_state_dict=True),
        )


def _numbered(state: State) -> State:
    """An optimizer's state by names of parameters -> by their numbers, as torch's own is."""
    numbers: dict[str, int] = {}
    groups = []
    for group in state["param_groups"]:
        for name in group["params"]:
            numbers[name] = len(numbers)
        groups.append({**group, "params": [numbers[name] for name in group["params"]]})
    return {
        "state": {numbers[name]: values for name, values in state["state"].items()},
        "param_groups": groups,
    }


def _named(state: State, optimizer: torch.optim.Optimizer, module: nn.Module) -> State:
    """The reverse of `_numbered`, with the names that the module has for the parameters."""
    name_of = {id(parameter): name for name, parameter in module.named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    names = [name_of[id(parameter)] for parameter in parameters]
    return {
        "state": {names[number]: values for number, values in state["state"].items()},
        "param_groups": [
            {**group, "params": [names[number] for number in group["params"]]}
            for group in state["param_groups"]
        ],
    }


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over ranks, in one exchange for each type."""
    gradients = [p.grad for p in parameters if p.requires_grad and p.grad is not None]
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for gradient in gradients:
        by_type.setdefault(gradient.dtype, []).append(gradient)
    for group in by_type.values():
        flat = torch.cat([gradient.flatten() for gradient in group])
        dist.all_reduce(flat)
        flat /= distributed.world_size()
        parts = flat.split([gradient.numel() for gradient in group])
        for gradient, part in zip(group, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def transformer_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The residual blocks to shard or compile one by one: timm's, of trunks and decoders.

    Those of open_clip's text tower are not among them. They take packed captions
    (`modeling.towers`), whose number of words is another at every step.
    """
    for child in module.modules():
        if all(hasattr(child, part) for part in ("norm1", "attn", "norm2", "mlp")):
            yield child
