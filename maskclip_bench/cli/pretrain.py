"""`maskclip-bench pretrain` and `export`: from a recipe to a model folder, and on from there."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

from maskclip_bench.cli.live import LabelColumn, LiveBars
from maskclip_bench.cli.options import DeviceOption, SafeConsole, WorkspaceOption, console
from maskclip_bench.cli.stopping import stopping_at_once
from maskclip_bench.errors import ConfigError
from maskclip_bench.escaping import markup
from maskclip_bench.runtime import Workspace

if TYPE_CHECKING:
    import torch
    from open_clip.model import CustomTextCLIP

    from maskclip_bench.backbones import Backbone
    from maskclip_bench.pretrain.recipe import Recipe
    from maskclip_bench.pretrain.trainer import Evaluator
    from maskclip_bench.progress import Snapshot
    from maskclip_bench.tasks import TaskDeclaration
    from maskclip_bench.tasks.protocols.base import Protocol

LAUNCHERS = ("here", "slurm")


def pretrain(
    recipe: Annotated[
        str,
        typer.Argument(help="A recipe, or its YAML file; see: maskclip-bench list recipes"),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value over the recipe: seed=1 optimizer.lr=1e-3")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The run's folder.",
            show_default="pretrain/RECIPE/seedN in the workspace",
        ),
    ] = None,
    workspace: WorkspaceOption = None,
    device: DeviceOption = "auto",
    launcher: Annotated[
        str, typer.Option("--launcher", help="here (this process, or torchrun's), or slurm.")
    ] = "here",
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            "--slurm",
            help="For --launcher slurm, key=value of submitit: nodes=2, slurm_partition=gpu...",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress display.")] = False,
) -> None:
    """Pretrain by a recipe. Interrupt it at any time: the same command goes on.

    For example:

        maskclip-bench pretrain demo/maskclip seed=1

        torchrun --nproc-per-node 8 -m maskclip_bench pretrain maskclip_vit-b-16_yfcc15m

        maskclip-bench pretrain clip_vit-b-16_cc3m --launcher slurm --slurm slurm_partition=gpu
    """
    with stopping_at_once():  # several seconds of imports
        from maskclip_bench.pretrain.recipe import load_recipe

    if launcher not in LAUNCHERS:
        raise ConfigError(f"No launcher {launcher!r}. Choose one of: {', '.join(LAUNCHERS)}.")
    if slurm and launcher != "slurm":
        raise ConfigError("--slurm goes with --launcher slurm.")
    if launcher == "slurm":
        from maskclip_bench.pretrain.launch import need_submitit

        need_submitit()  # before the demo world is drawn
    loaded = load_recipe(recipe, overrides or [])
    place = Workspace.open(workspace)
    folder = output or place.pretraining(loaded.name, loaded.seed)
    if loaded.on_demo_data:
        _prepare_demo(place, quiet=quiet)
    if launcher == "slurm":
        _submit(loaded, folder, place, device, slurm or [])
    else:
        _train_here(loaded, folder, place, device, quiet=quiet)


def export(
    source: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint of pretraining (checkpoints/step_*.pt, or a folder step_*.dcp) or "
            "of mmseg or mmdet (iter_*.pth, epoch_*.pth), or the folder of a run."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    to: Annotated[
        str, typer.Option("--to", help="open_clip, timm (the trunk), or hf (for the hub).")
    ] = "open_clip",
    weights: Annotated[
        str, typer.Option("--weights", help="student, or teacher (the momentum teacher).")
    ] = "student",
    config: Annotated[
        Path | None,
        typer.Option(help="Config of a segmentor or detector, if it is not beside the checkpoint."),
    ] = None,
) -> None:
    """Turn a checkpoint into a folder that open_clip, timm or the Hugging Face hub takes.

    A finetuned segmentor or detector becomes a folder of its config and its weights, which mmseg's
    and mmdet's scripts and inferencers take, without what training alone needs.

    For example:

        maskclip-bench export workspace/pretrain/demo/maskclip/seed0 --to hf -o maskclip-demo
    """
    if source.suffix == ".pth" or any(source.glob("*.pth")):
        from maskclip_bench.backbones.openmmlab.export_finetuned import export_finetuned

        console().print(f"Wrote {export_finetuned(source, output, config=config)}")
        return
    from maskclip_bench.pretrain.export import export_checkpoint

    folder = export_checkpoint(
        source,
        output,
        target=to,  # type: ignore[arg-type]  # checked there
        weights=weights,  # type: ignore[arg-type]
    )
    console().print(f"Wrote {folder}")


def _prepare_demo(place: Workspace, *, quiet: bool) -> None:
    if quiet:
        from maskclip_bench.data.demo import prepare_demo

        prepare_demo(place.data)
    else:
        from maskclip_bench.cli.data import prepare_with_bar

        prepare_with_bar(place)


def _train_here(
    recipe: Recipe, folder: Path, place: Workspace, device: str, *, quiet: bool
) -> None:
    from maskclip_bench.pretrain.launch import launch_here, local_rank_speaks

    shown = local_rank_speaks() and not quiet
    evaluators = evaluators_of(recipe, place, device)
    messages = console(stderr=True)
    with _Display(messages, recipe, active=shown and messages.is_terminal) as display:
        model = launch_here(
            recipe,
            output=folder,
            data_root=place.data,
            workspace=place.root,
            device=device,
            evaluators=evaluators,
            progress=display.update if shown else None,
        )
    if local_rank_speaks():
        console().print(f"The model is in {model}")


def evaluators_of(recipe: Recipe, place: Workspace, device: str) -> list[Evaluator]:
    """What the trainer runs every `recipe.evaluation.every_epochs`: one evaluator for each task.

    Each measures the student in memory as any other backbone; nothing is kept but the numbers.

    Raises:
        UnknownNameError: There is no such task.
        DataError: Its data are not on this machine.
    """
    if not recipe.evaluation.tasks:
        return []
    from maskclip_bench.errors import DataError
    from maskclip_bench.pretrain.launch import rank_device
    from maskclip_bench.tasks import PROTOCOLS, load_task, missing_data

    evaluators: list[Evaluator] = []
    for name in recipe.evaluation.tasks:
        protocol, task = load_task(name)
        if missing := missing_data(task, place):
            raise DataError(f"evaluation.tasks: {name} cannot run here: {missing}")
        evaluators.append(
            partial(_evaluate, recipe, place, rank_device(device), name, PROTOCOLS[protocol], task)
        )
    return evaluators


def _evaluate(
    recipe: Recipe,
    workspace: Workspace,
    device: torch.device,
    name: str,
    protocol: Protocol,
    task: TaskDeclaration,
    model: CustomTextCLIP,
    step: int,
) -> dict[str, float]:
    """Measure the student on a task -> its metrics, as `protocol/data set/metric`."""
    from maskclip_bench.tasks.measure import measure

    backbone = student_backbone(model, recipe, device)
    measurement = measure(protocol, task, backbone, workspace=workspace, device=device)
    return {f"{name}/{metric}": found.value for metric, found in measurement.metrics.items()}


def student_backbone(model: CustomTextCLIP, recipe: Recipe, device: torch.device) -> Backbone:
    """The model of a recipe, in memory, as a row: its weights stay trainable.

    Raises:
        NonFiniteError: Weights are NaN or infinite.
    """
    from maskclip_bench.backbones.declaration import BackboneDeclaration
    from maskclip_bench.backbones.encoders import OpenClipEncoder
    from maskclip_bench.backbones.families.base import Loaded
    from maskclip_bench.backbones.in_memory import MemorySource
    from maskclip_bench.backbones.loading import backbone_of
    from maskclip_bench.data.tokenizer import load_tokenizer

    augment = recipe.data.augment
    return backbone_of(
        Loaded(
            model=model,
            encoder=OpenClipEncoder(model, load_tokenizer(recipe.tokenizer)),
            preprocess={
                "image_size": recipe.model.image_size,
                "mean": augment.mean,
                "std": augment.std,
            },
            has_text=True,
            architecture=recipe.model.model_dump(mode="json"),
        ),
        BackboneDeclaration(
            name="student",
            display_name=recipe.name or "student",
            world=recipe.world,
            source=MemorySource(memory="CustomTextCLIP", reads_text=True),
        ),
        identity="student",
        device=device,
        freeze=False,
    )


def _submit(
    recipe: Recipe, folder: Path, place: Workspace, device: str, options: list[str]
) -> None:
    from maskclip_bench.pretrain.launch import submit_to_slurm

    job = submit_to_slurm(
        recipe,
        output=folder,
        data_root=place.data,
        workspace=place.root,
        device=device,
        options=options,
    )
    console().print(
        f"Submitted job {job.job_id}. The run is in {folder}, its output in {folder / 'slurm'}."
    )


class _Display:
    """A bar with speed, waiting, losses; without a terminal, a line now and then."""

    LINE_EVERY_FRACTION = 0.05

    def __init__(self, messages: SafeConsole, recipe: Recipe, *, active: bool) -> None:
        self._messages = messages
        self._active = active
        self._line_at = 0.0
        self._progress = LiveBars(
            BarColumn(bar_width=24),
            TextColumn("{task.completed:>7,.0f}/{task.total:,.0f}"),
            TimeElapsedColumn(),
            LabelColumn(messages, left_of_it=52),
            console=messages,
            enabled=active,
            transient=False,
        )
        name = markup(recipe.name or "pretraining")
        self._task = self._progress.add_task(name, total=1, visible=False)

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone
            self._progress.stop()

    def update(self, state: Snapshot) -> None:
        """Show a state."""
        note = describe(state)
        self._progress.footer = note
        self._progress.update(
            self._task, completed=state.step, total=state.total_steps, visible=True
        )
        fraction = state.step / state.total_steps
        if not self._active and (fraction >= self._line_at or fraction == 1.0):
            self._line_at = fraction + self.LINE_EVERY_FRACTION
            self._messages.print(f"step {state.step}/{state.total_steps}  {note}")


VALUES = (
    ("logit_scale", "scale {:.1f}"),
    ("ema_momentum", "ema {:.4f}"),
    ("teacher_age_steps", "teacher age {:.0f}"),
    ("codeword_perplexity", "codewords used {:.0f}"),
    ("codeword_row_perplexity", "a patch {:.0f}"),
    ("codeword_turn_degrees", "turn {:.2f} deg"),
    ("held_out_contrastive_loss", "held-out {:.3f}"),
)
"""Which of a state's values are in its line, and how."""


def describe(state: Snapshot) -> str:
    """A state in one line."""
    parts = [
        f"{_duration(state.eta_seconds)} left",
        f"{state.images_per_second:,.0f} images/s",
        f"data wait {100 * state.data_wait_fraction:.0f} %",
        *(f"{name.removesuffix('_loss')} {value:.3f}" for name, value in state.terms.items()),
    ]
    parts += [form.format(state.values[name]) for name, form in VALUES if name in state.values]
    parts.append(f"{state.memory_bytes / 2**30:.1f} GiB")
    if state.num_nonfinite_steps:
        parts.append(f"{state.num_nonfinite_steps} steps skipped")
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
