"""One device, copies on several (DDP), or weights sharded over several (FSDP2).

All three answer the same few questions (`ParallelStrategy`): how to run the module on a batch, how
gradients become those of the global batch, how the whole state is read and restored, and where the
whole models are for evaluation and export.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from maskclip_bench import distributed
from maskclip_bench.data.batch import Batch
from maskclip_bench.errors import CheckpointError, ConfigError
from maskclip_bench.training.checkpoint import other_model, restore_module, restore_optimizer
from maskclip_bench.training.shards import (
    as_states,
    as_tensors,
    load_shards,
    numbered,
    read_tensors,
)

State = dict[str, Any]

Models = tuple[nn.Module | None, nn.Module | None]
"""(student, momentum teacher or None)."""


class ParallelStrategy(Protocol):
    """How a module is trained on one or several devices."""

    decides_on_device: bool
    """Whether AdamW's kernel takes a flag on the device that says if a step is left out."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The module's loss terms, each a scalar."""

    def finish_gradients(self) -> None:
        """Average over ranks what the backward pass has not averaged itself."""

    def state(self, optimizer: torch.optim.Optimizer) -> tuple[State, State]:
        """State of module and optimizer, whole, on the main process.

        It is the same for all strategies: a run may be resumed with another one.
        """

    def restore(
        self, optimizer: torch.optim.Optimizer, module_state: State, optimizer_state: State
    ) -> None:
        """Load what `state` returned.

        Raises:
            CheckpointError: It is of another model.
        """

    def shards(self, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[State]]:
        """The same state as this rank holds it, for a checkpoint in shards.

        Returns:
            Tensors, whole or sharded, as `shards.as_tensors` names them; and the optimizer's groups
            with names of parameters.
        """

    def restore_shards(
        self, optimizer: torch.optim.Optimizer, folder: Path, groups: list[State]
    ) -> None:
        """Load a checkpoint in shards, whatever processes and strategy wrote it.

        Every rank calls it.

        Args:
            optimizer: Of the module.
            folder: Verified.
            groups: As `shards` gave them.

        Raises:
            CheckpointError: It is of another model.
        """

    def whole_models(self) -> Models:
        """Student and teacher with all their weights, on the main process (elsewhere None).

        Every rank calls it.
        """


class DDPStrategy:
    """The whole module on each device; gradients are averaged over devices.

    In one process it is the module and nothing else.
    """

    decides_on_device = True

    def __init__(self, module: nn.Module, *, device: torch.device, accumulates: bool) -> None:
        """Wrap the module; with `accumulates`, gradients are averaged after the last micro-batch.

        Args:
            module: On its device; its `model` is the student, its `teacher_model()` the teacher.
            device: Where it is.
            accumulates: Whether its `forward` is not used (`accumulation.accumulated_backward`).
        """
        self.module = module
        self._average_later = accumulates and distributed.is_distributed()
        self._forward: nn.Module = module
        if distributed.is_distributed() and not accumulates:
            # A static graph also covers parameters that no loss of the method uses.
            self._forward = DistributedDataParallel(
                module,
                device_ids=[device] if device.type == "cuda" else None,
                broadcast_buffers=False,  # the methods keep their statistics equal on all ranks
                gradient_as_bucket_view=True,
                static_graph=True,
            )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The module's loss terms, each a scalar."""
        return self._forward(batch)

    def finish_gradients(self) -> None:
        """Average what the backward pass has not averaged itself."""
        if self._average_later:
            average_gradients(self.module.parameters())

    def state(self, optimizer: torch.optim.Optimizer) -> tuple[State, State]:
        """State of module and optimizer, whole, on every rank."""
        return self.module.state_dict(), optimizer.state_dict()

    def restore(
        self, optimizer: torch.optim.Optimizer, module_state: State, optimizer_state: State
    ) -> None:
        """Load what `state` returned.

        Raises:
            CheckpointError: It is of another model.
        """
        restore_module(self.module, module_state, where="the checkpoint")
        restore_optimizer(optimizer, optimizer_state, where="the checkpoint")

    def shards(self, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[State]]:
        """State of module and optimizer: whole tensors, of which each rank writes some."""
        state = _named(optimizer.state_dict(), optimizer, self.module)
        return as_tensors(self.module.state_dict(), state), state["param_groups"]

    def restore_shards(
        self, optimizer: torch.optim.Optimizer, folder: Path, groups: list[State]
    ) -> None:
        """Load a checkpoint in shards; every rank reads all of it.

        Raises:
            CheckpointError: It is of another model.
        """
        module_state, state = as_states(read_tensors(folder), groups)
        self.restore(optimizer, module_state, numbered(state))

    def whole_models(self) -> Models:
        """The module's own student and teacher, on the main process (elsewhere None)."""
        if not distributed.is_main():
            return None, None
        module: Any = self.module
        return module.model, module.teacher_model()


class FSDPStrategy:
    """Every parameter sharded over the devices, block by block (FSDP2)."""

    decides_on_device = False  # the kernel takes no plain flag beside sharded weights

    def __init__(
        self,
        module: nn.Module,
        *,
        device: torch.device,
        bf16: bool,
        methods: Sequence[str] = (),
        rebuild: Callable[[State], Models] = lambda state: (None, None),
    ) -> None:
        """Shard the module's blocks, and what is outside of them.

        Args:
            module: On its device, the same on every rank.
            device: Where it is.
            bf16: Gather weights in bf16; gradients are still reduced in fp32.
            methods: Names of methods that, like `forward`, need the weights gathered.
            rebuild: Makes student and teacher of the module's whole state, on the main process.

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
        self.module = module
        self._rebuild = rebuild
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32
        )
        # The module's own inputs stay as they are: images are also targets, and losses between
        # embeddings are in fp32. Autocast casts what an operation wants in bf16.
        outer_policy = dataclasses.replace(policy, cast_forward_inputs=False)
        mesh = init_device_mesh(device.type, (distributed.world_size(),))
        # FSDP2 takes no scalars (the logit scale): they stay whole, and are averaged by hand, in an
        # order that is the same on every rank.
        self._whole = [parameter for parameter in module.parameters() if parameter.ndim == 0]
        for block in transformer_blocks(module):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(module, mesh=mesh, mp_policy=outer_policy, ignored_params=set(self._whole))
        for name in methods:
            register_fsdp_forward_method(module, name)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The module's loss terms, each a scalar."""
        return self.module(batch)

    def finish_gradients(self) -> None:
        """Average the gradients of what is not sharded."""
        average_gradients(self._whole)

    def state(self, optimizer: torch.optim.Optimizer) -> tuple[State, State]:
        """State of module and optimizer, gathered whole on the main process."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        module_state, optimizer_state = get_state_dict(self.module, optimizer, options=options)
        return module_state, numbered(optimizer_state) if distributed.is_main() else {}

    def shards(self, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[State]]:
        """This rank's shards of the state of module and optimizer."""
        from torch.distributed.checkpoint.state_dict import get_state_dict

        module_state, optimizer_state = get_state_dict(self.module, optimizer)
        tensors: Any = module_state
        state: State = dict(optimizer_state)
        return as_tensors(tensors, state), state["param_groups"]

    def restore_shards(
        self, optimizer: torch.optim.Optimizer, folder: Path, groups: list[State]
    ) -> None:
        """Load a checkpoint in shards, each rank its part of it.

        Raises:
            CheckpointError: It is of another model.
        """
        from torch.distributed.checkpoint.state_dict import set_state_dict

        tensors, _ = self.shards(optimizer)
        try:
            load_shards(folder, tensors)
            module_state, state = as_states(tensors, groups)
            set_state_dict(
                self.module, optimizer, model_state_dict=module_state, optim_state_dict=state
            )
        except (CheckpointError, RuntimeError, KeyError, ValueError) as error:
            raise other_model("the checkpoint", error) from error

    def whole_models(self) -> Models:
        """Models rebuilt from the gathered state, on the main process (elsewhere None)."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(self.module, options=options)
        return self._rebuild(state) if distributed.is_main() else (None, None)

    def restore(
        self, optimizer: torch.optim.Optimizer, module_state: State, optimizer_state: State
    ) -> None:
        """Load what `state` returned, each rank its shards.

        Raises:
            CheckpointError: It is of another model.
        """
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

        try:
            set_state_dict(
                self.module,
                optimizer,
                model_state_dict=module_state,
                optim_state_dict=_named(optimizer_state, optimizer, self.module),
                options=StateDictOptions(full_state_dict=True),
            )
        except (RuntimeError, KeyError, IndexError, ValueError) as error:
            raise other_model("the checkpoint", error) from error


def _named(state: State, optimizer: torch.optim.Optimizer, module: nn.Module) -> State:
    """The reverse of `shards.numbered`, with the names that the module has for the parameters."""
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
    """The residual blocks to shard one by one: timm's, of trunks and decoders.

    Those of open_clip's text tower are not among them; it is small beside the trunk of a model that
    needs shards.
    """
    for child in module.modules():
        if all(hasattr(child, part) for part in ("norm1", "attn", "norm2", "mlp")):
            yield child
