"""Models of transformers, by id or folder: CLIP-like ones and image encoders (extra `huggingface`).

Nothing of a repository is executed: code that a model brings along is refused.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskclip_bench import content_hash, storage
from maskclip_bench.backbones.families.base import (
    Family,
    Loaded,
    Source,
    in_hub_cache,
    not_in_cache,
    seeded,
    short,
)
from maskclip_bench.backbones.families.network import hub_url, refuse_offline
from maskclip_bench.errors import CheckpointError, ConfigError, MissingDependencyError
from maskclip_bench.extras import install_command
from maskclip_bench.runtime import Workspace

if TYPE_CHECKING:
    from maskclip_bench.backbones.declaration import BackboneDeclaration

HUB_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
LONGEST_TEXT = 512
"""Tokens, where neither tokenizer nor text tower states a limit."""

ROBERTA_TYPES = ("roberta", "xlm-roberta", "camembert", "altclip_text_model")
"""Text towers whose positions begin after the padding token's number."""


class HuggingFaceSource(Source):
    """A model of transformers."""

    huggingface: str
    """Model id on Hugging Face, or a folder in its format; needs the extra `huggingface`."""
    random_init: bool = False
    """The architecture with untrained weights drawn from the row's seed: a floor for the table."""


class HuggingFace(Family):
    """Models of transformers."""

    name = "huggingface"
    source_model = HuggingFaceSource
    prefix = "hf"

    def has_text(self, source: HuggingFaceSource) -> bool | None:
        """Whether the class of the model embeds texts; unknown before it is downloaded."""
        folder = local_folder(source.huggingface)
        if folder is None or importlib.util.find_spec("transformers") is None:
            return None
        from transformers import MODEL_MAPPING, AutoConfig

        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            return hasattr(MODEL_MAPPING[type(config)], "get_text_features")
        except Exception:  # loading says what is wrong with it
            return None

    def downloads_by_itself(self, source: HuggingFaceSource) -> bool:
        """Models that are named by id are fetched by transformers."""
        return not Path(source.huggingface).is_dir()

    def missing(
        self, declaration: BackboneDeclaration, workspace: Workspace, seed: int
    ) -> str | None:
        """Whether the folder is there, or the hub's cache has the weights."""
        source: Any = declaration.source
        here = local_folder(source.huggingface) is not None
        return None if here or source.random_init else not_in_cache(declaration)

    def contents(self, declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> Any:
        """All files of the folder, or of the downloaded snapshot: weights, configuration, ..."""
        source: Any = declaration.source
        folder = local_folder(source.huggingface)
        drawn = ["random_init", seed] if source.random_init else []
        if folder is None:
            return [source.huggingface, *drawn]
        names = sorted(
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and path.suffix != ".md" and not _hidden(path.relative_to(folder))
        )
        hashes = content_hash.file_hashes([folder / name for name in names])
        return [dict(zip(names, hashes, strict=True)), *drawn]

    def load(self, declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> Loaded:
        """Let transformers build model, processor and tokenizer."""
        try:
            import transformers  # noqa: F401
        except ImportError:
            raise MissingDependencyError(
                f"{declaration.name} is a Hugging Face model: {install_command('huggingface')}"
            ) from None
        from maskclip_bench.backbones import transform as transforms
        from maskclip_bench.backbones.huggingface_encoder import HuggingFaceEncoder

        source: Any = declaration.source
        name = source.huggingface
        if _is_hub_id(name) and not source.random_init and local_folder(name) is None:
            refuse_offline(f"hf:{name}", hub_url())
        try:
            model = _model(name, seed, random_init=source.random_init)
            processor = _processor(name)
            tokenize = _tokenize(name, model) if hasattr(model, "get_text_features") else None
        except (CheckpointError, ConfigError):
            raise
        except Exception as error:  # transformers, its hub and torch each have their own
            raise CheckpointError(
                f"Hugging Face cannot load {name!r}: {short(error)}. Give the id of a model or a "
                "folder; one that is not on this machine needs network access once."
            ) from error
        encoder = HuggingFaceEncoder(model, tokenize)
        return Loaded(
            model=model,
            encoder=encoder,
            has_text=encoder.has_text,
            architecture=["huggingface", model.config.model_type, type(model).__name__],
            **transforms.of_huggingface(processor),
        )


def local_folder(name: str) -> Path | None:
    """The folder of a model on this machine, or of the hub's snapshot; None without weights."""
    if Path(name).is_dir():
        return Path(name)
    if not _is_hub_id(name):
        return None
    found = in_hub_cache(name, HUB_WEIGHTS)
    return None if found is None else found.parent


def _is_hub_id(name: str) -> bool:
    """Whether a name can be one of the hub's, and not only a path."""
    return name.count("/") <= 1 and not name.startswith(("/", ".", "~"))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _model(name: str, seed: int, *, random_init: bool) -> Any:
    """The model, with weights of the repository or drawn ones.

    Raises:
        CheckpointError: Weights that the features need are not in the repository.
    """
    import transformers

    with seeded(seed, "random_init", name):
        if random_init:
            config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
            return transformers.AutoModel.from_config(config, trust_remote_code=False)
        model, info = transformers.AutoModel.from_pretrained(
            name,
            trust_remote_code=False,
            output_loading_info=True,
            dtype="float32",
            attn_implementation="eager",
        )
    untrained = sorted(key for key in info["missing_keys"] if not _unused(key, model))
    mismatched = sorted(str(key) for key in info.get("mismatched_keys") or ())
    if untrained or mismatched:
        raise CheckpointError(
            f"{name!r} lacks {len(untrained + mismatched)} tensors of {type(model).__name__}, "
            f"which would stay at a random start: {', '.join([*untrained, *mismatched][:5])}. "
            "Give a repository that has them."
        )
    return model


def _unused(key: str, model: Any) -> bool:
    """Whether a tensor takes no part in the features.

    That is the pooler of a type that we pool ourselves, and position numbers.
    """
    from maskclip_bench.backbones.huggingface_encoder import POOLING

    pooling = POOLING.get(model.config.model_type)
    ours = pooling is not None and pooling.kind != "pooler"
    return (ours and key.startswith("pooler.")) or key.endswith("position_ids")


def _processor(name: str) -> Any:
    """The image processor of the repository."""
    import transformers

    return transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)


def _tokenize(name: str, model: Any) -> Callable[[Sequence[str]], Any]:
    """Texts -> tokens, cut to what the text tower reads and padded as it was trained.

    Raises:
        ConfigError: The tokenizer has no padding token.
    """
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        raise ConfigError(
            f"The tokenizer of {name!r} has no padding token, so texts of several lengths make no "
            "batch. Set pad_token in its tokenizer_config.json, as the model was trained."
        )
    length = text_length(tokenizer.model_max_length, getattr(model.config, "text_config", None))

    def tokenize(texts: Sequence[str]) -> Any:
        return tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )

    return tokenize


def text_length(stated: Any, config: Any) -> int:
    """Tokens of the longest text: the smallest limit of tokenizer and text tower.

    Args:
        stated: `model_max_length` of the tokenizer, about 1e30 where it has none.
        config: Configuration of the text tower.
    """
    limits = [LONGEST_TEXT]
    if isinstance(stated, int) and 0 < stated <= LONGEST_TEXT:
        limits.append(stated)
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        reserved = 0
        if getattr(config, "model_type", "") in ROBERTA_TYPES:
            reserved = int(getattr(config, "pad_token_id", 0) or 0) + 1
        limits.append(positions - reserved)
    return min(limits)


def is_folder(path: Path) -> bool:
    """Whether a folder holds a model of transformers."""
    return "model_type" in (storage.read_object(path / "config.json") or {})
