"""The contract of a family: where models of one library come from, and what they can do.

Listings and plans ask families without loading anything, so the modules of families import torch
and their library inside functions only.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from maskclip_bench import storage
from maskclip_bench.config import Declaration
from maskclip_bench.errors import ConfigError
from maskclip_bench.registry import Registry
from maskclip_bench.runtime import Workspace, derive_seed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from maskclip_bench.backbones.declaration import BackboneDeclaration
    from maskclip_bench.backbones.encoders import Encoder

IDENTITY_VERSION = 1
"""Part of every identity; raised when the same files mean another model."""

_construction = threading.RLock()
"""torch has one global generator: models whose weights are drawn from it are built one at a time,
and so are the others, because building them also draws from it."""


class Source(Declaration):
    """Base of the sources of all families: the keys of `source: {...}` in a row."""

    family_name: ClassVar[str] = ""
    """Set by the family that names it as its `source_model`."""

    @property
    def family(self) -> Family:
        """The family that this source is of."""
        return FAMILIES[self.family_name]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model as its family gives it, on the CPU.

    Attributes:
        model: The module that holds the weights.
        encoder: How features are taken from it.
        preprocess: Its own preprocessing, with the keys of `Preprocess`.
        has_text: Whether it reads texts.
        library_transform: The library's own test transform, PIL image -> normalized [3, H, W],
            to compare ours with; None where there is none.
        inexpressible: Why `preprocess` cannot say all that the library's transform does.
        architecture: What decides the features besides the tensors, JSON-like.
        own_identity: Identity of an object that only loading could make; else None.
    """

    model: nn.Module
    encoder: Encoder
    preprocess: dict[str, Any]
    has_text: bool
    library_transform: Callable[[Any], Tensor] | None = None
    inexpressible: str | None = None
    architecture: Any = None
    own_identity: Any = field(default=None)


class Family(ABC):
    """Where models of one library come from. One instance a family, in `FAMILIES`."""

    name: ClassVar[str]
    """The key of its sources, and its name in `FAMILIES`."""
    source_model: ClassVar[type[Source]]
    """Its keys; the field called `name` is required, all others have defaults."""
    made_by_code: ClassVar[bool] = False
    """Whether building the model is the only way to know what it is made of."""
    prefix: ClassVar[str] = ""
    """What begins a string that names one of its models ("timm:..."); empty = the name."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "source_model" in cls.__dict__:
            cls.source_model.family_name = cls.name

    # What it can do, without loading.

    @abstractmethod
    def has_text(self, source: Any) -> bool | None:
        """Whether the model reads texts; None = not known before it is loaded."""

    def recipe(self, source: Any) -> str | None:
        """The recipe with which this project pretrains the weights; None = made elsewhere."""
        return None

    def depends_on_seed(self, source: Any) -> bool:
        """Whether another seed gives other weights."""
        return bool(getattr(source, "random_init", False))

    def downloads_by_itself(self, source: Any) -> bool:
        """Whether its library fetches weights that are not on this machine."""
        return False

    def has_vision_trunk(self, source: Any) -> bool:
        """Whether `vision_trunk` finds a trunk that gives feature maps (dense tasks)."""
        return False

    def source_from_string(self, text: str) -> Source:
        """The source that the part after the prefix of "timm:NAME" names.

        Raises:
            ConfigError: It cannot be one.
        """
        return self.source_model.model_validate({self.name: text})

    # Where its weights are.

    def weights_folder(self, source: Any, workspace: Workspace, seed: int) -> Path | None:
        """The open_clip folder with the weights, for families that keep them in one."""
        return None

    @abstractmethod
    def missing(
        self, declaration: BackboneDeclaration, workspace: Workspace, seed: int
    ) -> str | None:
        """What is missing of the weights and how to get it; None = all is on this machine.

        Nothing is loaded and nothing is downloaded.
        """

    # Identity and loading.

    @abstractmethod
    def contents(self, declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> Any:
        """Everything that the model is made of, JSON-like: content hashes of its files, names.

        Nothing is put on a device. Paths are left out: a moved file is the same model.

        Raises:
            MaskCLIPBenchError: Something of it is missing or broken.
        """

    def identity(
        self, declaration: BackboneDeclaration, *, workspace: Workspace, seed: int = 0
    ) -> str:
        """Hash of `contents`: equal exactly when the model is made of the same things.

        Raises:
            MaskCLIPBenchError: Something of it is missing or broken.
        """
        contents = self.contents(declaration, workspace, seed)
        return self.identity_of(contents)

    def identity_of(self, contents: Any) -> str:
        """The hash of what `contents` returned."""
        return storage.fingerprint([IDENTITY_VERSION, self.name, contents], length=32)

    @abstractmethod
    def load(self, declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> Loaded:
        """Build the model with its weights, on the CPU.

        Raises:
            CheckpointError: The weights are missing, broken or of another architecture.
            ConfigError: The source does not fit the model.
            MissingDependencyError: A package is missing.
        """

    def without_weights(
        self, declaration: BackboneDeclaration, workspace: Workspace, seed: int
    ) -> tuple[nn.Module, dict[str, Any] | None] | None:
        """The model before its weights are loaded, and its architecture in JSON.

        Dense tasks build a model with it that a checkpoint fills: nothing is downloaded. The
        architecture is `{"timm": name}` or as `open_clip_folder.vision_architecture` gives it, so
        that a checkpoint alone can make the model again. None where only loading makes it, or
        where the files that say the architecture are not here.
        """
        return None

    def vision_trunk(self, model: nn.Module) -> nn.Module:
        """The trunk inside a loaded model that gives feature maps.

        Raises:
            ConfigError: There is none.
        """
        raise ConfigError(
            f"{type(model).__name__} (family {self.name}) gives no feature maps. Use a timm or an "
            "open_clip model."
        )


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold the lock under which models are built in this process (reentrant)."""
    with _construction:
        yield


_HERE = "maskclip_bench.backbones.families"

FAMILIES: Registry[Family] = Registry(
    "family of models",
    "maskclip_bench.families",
    {
        "recipe": f"{_HERE}.recipe:Recipe",
        "open_clip": f"{_HERE}.open_clip:OpenClip",
        "open_clip_folder": f"{_HERE}.open_clip_folder:OpenClipFolder",
        "timm": f"{_HERE}.timm:Timm",
        "huggingface": f"{_HERE}.huggingface:HuggingFace",
        "slip": f"{_HERE}.slip:SLIPRelease",
        "python": f"{_HERE}.python:Python",
    },
    remedy="docs/extending.md describes how a package adds one.",
    make=lambda family: family(),
)


@contextlib.contextmanager
def seeded(seed: int, *purpose: object) -> Iterator[None]:
    """Let torch's global generator draw as `derive_seed(seed, *purpose)` says, then restore it.

    One construction runs at a time in a process, so the weights do not depend on other threads.
    """
    import torch

    with one_at_a_time(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, *purpose))
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the remarks of open_clip and timm on the root logger out of the display."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(max(before, logging.ERROR))
    try:
        yield
    finally:
        root.setLevel(before)


def short(error: BaseException, *, limit: int = 400) -> str:
    """The text of an error on one line."""
    return " ".join(str(error).split())[:limit]


def nothing_downloaded(*folders: Path) -> bool:
    """Whether neither Hugging Face's cache nor any of `folders` holds anything.

    Then no weights are here, and a plan need not import a library to find its names for them.
    """
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE).glob("models--*")
    return not any(next(found, None) for found in (hub, *(each.glob("*") for each in folders)))


def in_hub_cache(repository: str, files: tuple[str, ...]) -> Path | None:
    """The first of `files` that Hugging Face's cache has of a repository, or None."""
    from huggingface_hub import try_to_load_from_cache

    for file in files:
        found = try_to_load_from_cache(repository, file)
        if isinstance(found, str):
            return Path(found)
    return None


def not_in_cache(declaration: BackboneDeclaration) -> str:
    """The message for weights that their library would download."""
    remedy = declaration.obtain or (
        "Naming the row in `run --backbone` lets its library download it"
    )
    return f"the weights of {declaration.display_name} are not in this machine's cache. {remedy}"
