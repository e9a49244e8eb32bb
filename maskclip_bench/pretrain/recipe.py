"""Recipes: one YAML file says everything that decides what a pretraining run computes.

`configs/pretrain/maskclip_vit-b-16_yfcc15m.yaml` is the recipe `maskclip_vit-b-16_yfcc15m`. Fields
under `method` belong to the method's own `Config`; everything else is declared here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, SerializeAsAny, model_validator

from maskclip_bench.config import Declaration, World, decisive, load_declaration, validate
from maskclip_bench.data.pair_config import DataConfig, SourceConfig
from maskclip_bench.data.readers.base import ReaderDeclaration
from maskclip_bench.data.tokenizer import TokenizerConfig
from maskclip_bench.data_files import declarations, find_declaration
from maskclip_bench.errors import ConfigError, unknown_name
from maskclip_bench.modeling.model import ModelConfig
from maskclip_bench.pretrain.methods import METHODS
from maskclip_bench.pretrain.recipe_summary import (
    KIND,
    LISTING,
    length_in_words,
    recipe_names,
)
from maskclip_bench.storage import fingerprint

__all__ = ["Recipe", "load_recipe", "recipe_names", "recorded_recipe"]

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Epochs = Annotated[float, Field(gt=0.0, le=1e6)]
Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]


class MethodSection(Declaration):
    """`method: {name: maskclip, ...}`: the name, and the fields of that method's `Config`."""

    model_config = ConfigDict(extra="allow")

    name: str
    """One of `METHODS` (`maskclip_bench/pretrain/methods/`)."""

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the method's `Config` that the recipe sets."""
        return dict(self.model_extra or {})

    @property
    def relative_cost(self) -> float:
        """Rough time of a step with these fields, CLIP's = 1 (`Method.cost_of`)."""
        method = METHODS[self.name]
        return float(method.cost_of(validate(self.fields, method.Config, where="method")))

    @model_validator(mode="after")
    def _is_a_method(self) -> MethodSection:
        if self.name not in METHODS:
            error = unknown_name(
                "method", self.name, METHODS, remedy="See maskclip_bench/pretrain/methods/."
            )
            raise ValueError(str(error))
        try:
            validate(self.fields, METHODS[self.name].Config, where="method")
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self


class OptimizerSection(Declaration):
    """AdamW and its learning rate: linear warm-up, then half a cosine."""

    lr: Annotated[float, Field(gt=0.0)]
    """Highest learning rate, for the global batch size of the recipe (no scaling is applied)."""

    weight_decay: NonNegative = 0.1
    """Decoupled decay. SLIP's recipes: 0.5 for CLIP, 0.1 for SLIP and SimCLR."""

    betas: tuple[Momentum, Momentum] = (0.9, 0.98)
    """Of AdamW. SLIP's values."""

    eps: Annotated[float, Field(gt=0.0)] = 1e-8
    """Of AdamW. SLIP's value."""

    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps of linear warm-up. Give this or `warmup_epochs`."""

    warmup_epochs: Annotated[float, Field(ge=0.0, le=1e6)] | None = None
    """Epochs of linear warm-up. SLIP: 1."""

    start_lr: NonNegative = 1e-6
    """Where the warm-up starts. SLIP's value."""

    min_lr: NonNegative = 1e-5
    """Where the cosine ends. SLIP's value."""

    clip_grad_norm: Annotated[float, Field(gt=0.0)] | None = None
    """Largest norm of the whole gradient; by default it is not clipped, as in SLIP."""

    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        default=None, json_schema_extra={"neutral": None}
    )
    """Factor of the learning rate from a layer of a tower to the one before it; by default all
    layers have the same rate. For runs with `init`."""

    @model_validator(mode="after")
    def _one_warmup(self) -> OptimizerSection:
        if self.warmup_steps is not None and self.warmup_epochs is not None:
            raise ValueError(
                "warmup_steps and warmup_epochs are both given; give one (the other is null)"
            )
        for name, value in (("min_lr", self.min_lr), ("start_lr", self.start_lr)):
            if value > self.lr:
                raise ValueError(f"{name} {value} is larger than lr {self.lr}; lower it too")
        return self


class InitSection(Declaration):
    """Weights that the model starts from, instead of random ones: those of a finished CLIP."""

    open_clip: str | None = None
    """Name in open_clip (`ViT-B-16`, `hf-hub:OWNER/NAME`). Give this or `folder`."""

    pretrained: str | None = None
    """Tag of its weights (`openai`, `laion2b_s34b_b88k`), or a file of them."""

    folder: Path | None = None
    """The `model` folder of a finished run, or any other that open_clip reads; a relative path is
    below the workspace."""

    @model_validator(mode="after")
    def _one_origin(self) -> InitSection:
        if (self.open_clip is None) == (self.folder is None):
            raise ValueError("give one of open_clip and folder, and not both")
        if self.folder is not None and self.pretrained is not None:
            raise ValueError("pretrained goes with open_clip; a folder has its own weights")
        if self.open_clip and ":" not in self.open_clip and self.pretrained is None:
            raise ValueError("open_clip needs pretrained: the tag of its weights, e.g. openai")
        return self

    @property
    def label(self) -> str:
        """For messages: "ViT-B-16/openai", or the folder."""
        parts = (self.open_clip, self.pretrained) if self.folder is None else (str(self.folder),)
        return "/".join(part for part in parts if part)


class CheckpointSection(Declaration):
    """When a run writes what it needs to go on."""

    every_steps: Positive | None = None
    """Steps between two checkpoints; by default once an epoch. One is also written at the end, and
    when the run is interrupted (Ctrl-C, SIGTERM, the signal of a Slurm job)."""

    keep: Positive = 2
    """How many are kept, the newest. More than one, so that a broken file costs little."""

    sharded: bool | None = None
    """Whether every process writes what it holds, in the background (a folder `step_*.dcp`), or the
    main process one file, while all wait (`step_*.pt`). By default with `parallel: fsdp`. Either is
    read by any number of processes, and by `ddp` and `fsdp` alike."""


class LogSection(Declaration):
    """What a run logs."""

    every_steps: Positive = 10
    """Steps between two lines of log.jsonl, and two points of TensorBoard."""

    tensorboard: bool = True
    """Write TensorBoard event files."""

    wandb_project: str | None = None
    """Also log to Weights & Biases under this project (needs `pip install wandb`)."""


class HeldOutSection(Declaration):
    """Pairs that the run is not trained on, whose contrastive loss is logged while it goes."""

    source: SourceConfig | None = None
    """Where they are, as in `data.source`. Give this or `reader`."""

    reader: SerializeAsAny[ReaderDeclaration] | None = None
    """A data set with captions, as in `tasks/*.yaml`: `{kind: karpathy, root: coco, ...}`."""

    split: str | None = None
    """Split of that data set, by its own name."""

    num_pairs: Annotated[int, Field(ge=2)] = 1024
    """Pairs used, at most; the same ones for every seed and method."""

    batch_size: Annotated[int, Field(ge=2)] | None = None
    """Pairs that are compared with each other; the loss is the mean over such groups, and grows
    with their size. By default `global_batch_size`, or all pairs if they are fewer."""

    every_steps: Positive | None = None
    """Steps between two measurements; by default once an epoch. One is also made at the end."""

    @model_validator(mode="after")
    def _one_origin(self) -> HeldOutSection:
        if (self.source is None) == (self.reader is None):
            raise ValueError("give one of source and reader, and not both")
        if (self.reader is None) != (self.split is None):
            raise ValueError("reader and split need each other")
        if self.batch_size is not None and self.batch_size > self.num_pairs:
            raise ValueError(f"batch_size {self.batch_size} is larger than num_pairs")
        return self


class EvaluationSection(Declaration):
    """Evaluations while a run goes, for the log only: checkpoints are never chosen by them."""

    held_out: HeldOutSection | None = None
    """Pairs for `held_out_contrastive_loss`, of methods that train embeddings of pairs; by default
    there are none."""

    every_epochs: Epochs | None = None
    """Epochs between two evaluations; by default there is none."""

    tasks: tuple[str, ...] = ()
    """What to evaluate then, as protocol/data set (`zero_shot_classification/imagenet`)."""

    @model_validator(mode="after")
    def _when_and_what(self) -> EvaluationSection:
        if self.tasks and self.every_epochs is None:
            raise ValueError("tasks are given without every_epochs; say when to evaluate")
        return self


class Recipe(Declaration):
    """A method with its model, data and schedule: what `maskclip-bench pretrain` runs."""

    name: str = ""
    """Path below `configs/pretrain/` without its suffix; set from the file, not written in it."""

    description: str = ""
    """One line for listings."""

    world: World
    """The family of data sets it trains on."""

    method: MethodSection
    """How it pretrains."""

    model: ModelConfig
    """What it pretrains."""

    init: InitSection | None = Field(default=None, json_schema_extra={"neutral": None})
    """What the model starts from; by default random weights."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    """How captions become tokens."""

    data: DataConfig
    """What it pretrains on."""

    optimizer: OptimizerSection
    """How the weights are updated."""

    global_batch_size: Positive
    """Pairs of one optimizer step, over all devices and accumulation steps."""

    accumulation_steps: Positive = 1
    """Micro-batches a device goes through for one step. The negatives stay those of the whole
    batch, and the gradient stays exact; embeddings are computed twice."""

    epochs: Epochs | None = None
    """Passes over the data. Give this or `num_pairs`."""

    num_pairs: Positive | None = None
    """Image-text pairs seen in the whole run; rounded down to whole batches."""

    precision: Literal["fp32", "bf16"] = "bf16"
    """`bf16`: autocast; weights, optimizer and losses stay fp32."""

    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Over several devices: replicas, or (FSDP2) weights and optimizer in shards, for ViT-L up.
    With `precision: bf16` they do not compute the same, and so are two recipes."""

    compile: bool = False
    """`torch.compile`: towers, teacher, decoders and losses of each sample as one graph; with
    `parallel: fsdp` their blocks one by one. The first step takes a minute or more."""

    memory: Literal["as_given", "auto"] = Field(
        default="as_given", json_schema_extra={"neutral": "as_given"}
    )
    """`auto`: `grad_checkpointing` and, if that is not enough, `accumulation_steps` are chosen for
    the memory that is free on the device (`pretrain/memory.py`); the run's recipe.yaml has what was
    chosen, and a run that is resumed keeps it."""

    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Of the weights, the order of the data, crops, masks and everything else that is drawn."""

    max_nonfinite_steps: Positive = 10
    """Steps in a row with a loss or a gradient that is not finite (each is skipped) before the run
    stops."""

    checkpoint: CheckpointSection = CheckpointSection()
    """When checkpoints are written."""

    log: LogSection = LogSection()
    """What is logged."""

    evaluation: EvaluationSection = EvaluationSection()
    """When evaluators run."""

    @model_validator(mode="after")
    def _lengths_fit(self) -> Recipe:
        if (self.epochs is None) == (self.num_pairs is None):
            raise ValueError(
                "give one of epochs and num_pairs, and not both; the other is null "
                "(epochs=5 num_pairs=null)"
            )
        if self.global_batch_size == 1 and self._compares_samples:
            raise ValueError(
                f"global_batch_size is 1, and {self.method.name} compares samples with each other; "
                "give at least 2"
            )
        if self.global_batch_size % self.accumulation_steps:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not a multiple of "
                f"accumulation_steps {self.accumulation_steps}"
            )
        if self.num_pairs is not None and self.num_pairs < self.global_batch_size:
            raise ValueError(
                f"num_pairs {self.num_pairs} is less than one batch of {self.global_batch_size}"
            )
        if self.tokenizer.context_length != self.model.text.context_length:
            raise ValueError(
                f"tokenizer.context_length {self.tokenizer.context_length} differs from "
                f"model.text.context_length {self.model.text.context_length}"
            )
        return self

    @model_validator(mode="after")
    def _fields_follow(self) -> Recipe:
        for key, (origin, value) in self._following().items():
            given = self.method.fields.get(key)
            if given is None:
                continue
            if isinstance(value, tuple):
                given, value = list(map(float, given)), list(value)
            if given != value:
                raise ValueError(
                    f"method.{key} {given} differs from {origin} {value}; leave it out"
                )
        return self

    @property
    def _compares_samples(self) -> bool:
        method = METHODS[self.method.name]
        return method.uses_text or method.num_ssl_views > 0

    def _following(self) -> dict[str, tuple[str, Any]]:
        """Fields of the method that follow from others of the recipe: their names and values."""
        known = METHODS[self.method.name].Config.model_fields
        augment = self.data.augment
        following: dict[str, tuple[str, Any]] = {
            "image_mean": ("data.augment.mean", augment.mean),
            "image_std": ("data.augment.std", augment.std),
            "pairs_per_step": ("global_batch_size", self.global_batch_size),
        }
        return {key: value for key, value in following.items() if key in known}

    def method_fields(self, *, workspace: Path | None = None) -> dict[str, Any]:
        """Fields of the method's `Config`: those set, and those that follow from other fields.

        Args:
            workspace: What a relative `start_from` is below; by default the working directory.
        """
        following = {key: value for key, (_, value) in self._following().items()}
        fields = {**self.method.fields, **following}
        if workspace is not None and fields.get("start_from") is not None:
            fields["start_from"] = workspace / fields["start_from"]
        return fields

    @property
    def checkpoints_in_shards(self) -> bool:
        """Whether every process writes its part of a checkpoint."""
        sharded = self.checkpoint.sharded
        return self.parallel == "fsdp" if sharded is None else sharded

    @property
    def on_demo_data(self) -> bool:
        """Whether its pairs are of the demo world, which is drawn where it is missing."""
        return Path(self.data.source.path).parts[:1] == ("demo",)

    @property
    def length(self) -> str:
        """How long it trains, for listings: "64,000" pairs or "25 epochs"."""
        return length_in_words(self.num_pairs, self.epochs)

    def computation_fingerprint(self) -> str:
        """Hash of what decides the numbers: without logs, checkpoints, and how it is executed."""
        executed = {"parallel", "compile", "memory", "grad_checkpointing"}
        told = {"name", "description", "checkpoint", "log", "evaluation"}
        values = decisive(self)
        for name in executed | told:
            values.pop(name, None)
        if self.parallel == "fsdp" and self.precision == "bf16":
            values["parallel"] = "fsdp"  # its residual stream is in bf16, that of ddp in fp32
        for key in ("held", "num_workers", "prefetch_batches"):
            values["data"].pop(key, None)
        # Defaults too: one that a later version changes makes another recipe.
        config = METHODS[self.method.name].Config(**self.method.fields)
        values["method"] = {"name": self.method.name, **decisive(config)}
        return fingerprint(values)


def load_recipe(name_or_path: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe of the catalogue, or a YAML file, with `key=value` overrides.

    Raises:
        UnknownNameError: There is no such recipe.
        ConfigError: It is not valid.
    """
    path = find_declaration(KIND, name_or_path, singular="recipe", listing=LISTING)
    recipe = load_declaration(path, Recipe, overrides=overrides)
    return recipe.model_copy(update={"name": _name_of(path) or recipe.name or path.stem})


EARLIER_DEFAULTS: dict[str, dict[str, Any]] = {
    "maskclip": {
        "ema_momentum": 0.996,
        "ema_momentum_end": 1.0,
        "codeword_init": "normal",
        "teacher_temp": 0.04,
        "teacher_temp_warmup": 0.0,
        "mlm_average": "captions",
    },
    "mvp": {"codeword_init": "normal", "teacher_temp": 0.04, "teacher_temp_warmup": 0.0},
    "clip_mae": {"contrastive_weight": 1.0},
}
"""What methods computed where a recipe said nothing, before `projection_init` was a field."""


def recorded_recipe(values: dict[str, Any], *, where: str) -> Recipe:
    """The recipe that a run recorded, as it was computed.

    Fields whose defaults have changed since get the values of then.

    Args:
        values: Content of the run's recipe.yaml, or of its checkpoint.
        where: Of messages.

    Raises:
        ConfigError: It is not valid.
    """
    model, method = values.get("model"), values.get("method")
    if isinstance(model, dict) and isinstance(method, dict):
        vision = model.get("vision") or {}
        if isinstance(vision, dict) and "projection_init" not in vision:
            vision = {**vision, "projection_init": "open_clip"}
            earlier = EARLIER_DEFAULTS.get(str(method.get("name")), {})
            values = {
                **values,
                "model": {**model, "vision": vision},
                "method": {**earlier, **method},
            }
    return validate(values, Recipe, where=where)


def _name_of(path: Path) -> str:
    """Name of a catalogue file; empty for any other file."""
    resolved = path.resolve()
    return next(
        (name for name, file in declarations(KIND).items() if file.resolve() == resolved), ""
    )
