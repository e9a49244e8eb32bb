"""Encoders of the user's own: `source: {python: "module:factory", arguments: {...}}`.

The factory returns an `nn.Module` or another callable, images [B, 3, H, W] -> [B, D], or an object
with `encode_image` and, to read texts, `encode_text` (see `encoders.PythonEncoder`). Its
preprocessing is stated by the object (`preprocess`, a dictionary or a callable) or by the row.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from maskclip_bench.backbones.families.base import Family, Loaded, Source, seeded, short
from maskclip_bench.errors import CheckpointError, ConfigError, MaskCLIPBenchError
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
    """`package.module:factory`; called with `arguments`, returns an encoder."""
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
    """An encoder that states no `preprocess` needs mean and std in its row.

    Raises:
        ConfigError: The row does not state them.
    """
    stated = declaration.preprocess
    own = getattr(made, "preprocess", None)
    if own is not None:
        if isinstance(own, dict) and stated.mean is None and own.get("mean") is None:
            logger.warning(
                "%s: its preprocess states no mean and std; those of ImageNet are used.",
                declaration.name,
            )
        return
    missing = [key for key in ("image_size", "mean", "std") if getattr(stated, key) is None]
    if missing:
        raise ConfigError(
            f"{declaration.name}: the preprocessing of {declaration.source.family_name} encoders "
            f"is not guessed, and {', '.join(missing)} is stated nowhere. Write preprocess: "
            "{image_size: ..., mean: [...], std: [...]} in the row (of values 0 to 1), or give the "
            "encoder an attribute preprocess."
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
    factory = _factory(source, what)
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


def _factory(source: PythonSource, what: str) -> Any:
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
