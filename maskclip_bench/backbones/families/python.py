"""Encoders of the user's own: `source: {python: "module:factory", arguments: {...}}`.

The factory, a function or a class, returns an `nn.Module` or another callable, images [B, 3, H, W]
-> [B, D], or an object with `encode_image` and, to read texts, `encode_text` (see
`encoders.PythonEncoder`). A module that is already made can be named, too. Its preprocessing is
stated by the object (`preprocess`, a dictionary or a callable) or by the row.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from maskclip_bench.backbones.families.base import Family, Loaded, Source, seeded, short
from maskclip_bench.errors import CheckpointError, ConfigError, MaskCLIPBenchError
from maskclip_bench.normalization import IMAGENET_MEAN, IMAGENET_STD
from maskclip_bench.runtime import Workspace

if TYPE_CHECKING:
    from maskclip_bench.backbones.declaration import BackboneDeclaration

logger = logging.getLogger(__name__)

_texts_read: dict[str, bool | None] = {}
"""Source as JSON -> whether its encoder reads texts, so that a plan builds it once for that."""
_texts_read_lock = threading.Lock()


class PythonSource(Source):
    """An encoder of the user's own."""

    python: str
    """`package.module:factory`, called with `arguments`, returns an encoder; or a torch module."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the factory."""


class Python(Family):
    """Encoders of the user's own."""

    name = "python"
    source_model = PythonSource
    made_by_code = True

    def has_text(self, source: PythonSource) -> bool | None:
        """Whether the encoder has `encode_text`; it is built once to find out."""
        key = json.dumps(source.model_dump(mode="json"), sort_keys=True, default=str)
        with _texts_read_lock:
            if key not in _texts_read:
                try:
                    made = make(source, seed=0, what=source.python)
                    _texts_read[key] = callable(getattr(made, "encode_text", None))
                except MaskCLIPBenchError:
                    return None  # loading says what is wrong
            return _texts_read[key]

    def missing(
        self, declaration: BackboneDeclaration, workspace: Workspace, seed: int
    ) -> str | None:
        """Nothing: the factory knows where its weights are."""
        return None

    def contents(self, declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> Any:
        """The source code, and all that is reachable from the encoder, which is built for it."""
        source: Any = declaration.source
        return encoder_contents(make(source, seed, declaration.name), source)

    def load(self, declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> Loaded:
        """Call the factory."""
        from maskclip_bench.backbones.encoders import loaded_from_object

        source: Any = declaration.source
        made = make(source, seed, declaration.name)
        _refuse_unstated(made, declaration)
        contents = encoder_contents(made, source)
        return loaded_from_object(
            made,
            architecture=["python", source.python, source.arguments],
            own_identity=self.identity_of(contents),
        )


def _refuse_unstated(made: Any, declaration: BackboneDeclaration) -> None:
    """Size, mean and std are stated by the encoder's `preprocess` or by the row, or it is one.

    An encoder or a row that states the size alone gets ImageNet's mean and std, as it always did,
    and a warning says so.

    Raises:
        ConfigError: Nothing is stated, or no size.
    """
    stated = declaration.preprocess
    own = getattr(made, "preprocess", None)
    if own is not None and not isinstance(own, Mapping):
        return  # a function of its own, or no valid one: loading says so
    if own and not set(own) <= set(type(stated).model_fields):
        return  # loading names the unknown key
    missing = [
        key
        for key in ("image_size", "mean", "std")
        if getattr(stated, key) is None and (own or {}).get(key) is None
    ]
    if missing and "image_size" not in missing:
        logger.warning(
            "%s states an image size and no %s: ImageNet's are taken (mean %s, std %s). State them "
            "in its preprocess if it was trained with others.",
            declaration.name,
            " and no ".join(missing),
            list(IMAGENET_MEAN),
            list(IMAGENET_STD),
        )
    elif missing:
        raise ConfigError(
            f"{declaration.name}: how images are prepared for a {declaration.source.family_name} "
            f"encoder is not guessed, and {', '.join(missing)} is stated nowhere. Add to the "
            "encoder's class, with its own numbers (of pixel values 0 to 1):\n"
            '    preprocess = {"image_size": 224, "mean": [0.48, 0.46, 0.41],\n'
            '                  "std": [0.27, 0.26, 0.28]}\n'
            "or to the row's YAML file:\n"
            "    preprocess: {image_size: 224, mean: [0.48, 0.46, 0.41], std: [0.27, 0.26, 0.28]}"
        )


def encoder_contents(made: Any, source: PythonSource) -> Any:
    """What an encoder is made of, JSON-like."""
    from maskclip_bench.backbones.object_identity import object_contents, source_contents

    own = object_contents(made)
    code = None if own[0] == "fingerprint" else source_contents(source.python.partition(":")[0])
    return [source.python, source.arguments, code, own]


def make(source: PythonSource, seed: int, what: str) -> Any:
    """Call the factory, seeded.

    Raises:
        ConfigError: It cannot be imported, or returned no encoder.
        CheckpointError: It failed.
    """
    factory = _named(source, what)
    if _is_module(factory):
        if source.arguments:
            raise ConfigError(
                f"{what}: {source.python} is a model, not a function that makes one, so it takes "
                "no arguments. Remove them, or name a function or a class."
            )
        return factory
    try:
        with seeded(seed, "random_init", source.python):
            made = factory(**source.arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a user's code raises ends one row, not the suite
        raise CheckpointError(
            f"{what}: {source.python} failed with {type(error).__name__}: {short(error)}. "
            "Correct the factory, or the row's arguments."
        ) from error
    if not (callable(made) or callable(getattr(made, "encode_image", None))):
        raise ConfigError(
            f"{what}: {source.python} returned a {type(made).__name__}, which is no encoder. "
            "Return an nn.Module or a function, images [B, 3, H, W] -> [B, D], or an object with "
            "encode_image(images)."
        )
    return made


def _is_module(found: Any) -> bool:
    """Whether it is a torch module already made; without torch nothing is."""
    torch_nn = sys.modules.get("torch.nn")
    return torch_nn is not None and isinstance(found, torch_nn.Module)


def _named(source: PythonSource, what: str) -> Any:
    """What the source names: a function or class that makes an encoder, or a module.

    Raises:
        ConfigError: It cannot be imported, or is neither.
    """
    module_name, colon, name = source.python.partition(":")
    if not colon or not module_name or not name:
        raise ConfigError(f"{what}: python source {source.python!r} should be 'module:factory'.")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # last, so that it hides nothing that is installed
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except KeyboardInterrupt:
        raise
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{what}: python source {source.python!r} cannot be imported ({error}). "
            "Put its folder on PYTHONPATH or run in it, or correct the name."
        ) from error
    except BaseException as error:
        raise ConfigError(
            f"{what}: importing {module_name} failed with {type(error).__name__}: "
            f"{short(error)}. Correct that module."
        ) from error
    if not callable(found):
        raise ConfigError(
            f"{what}: {source.python} is a {type(found).__name__}, not a function that returns an "
            "encoder."
        )
    return found
