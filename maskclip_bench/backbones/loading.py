"""From a row's declaration to a model that gives features.

Weights are read with safetensors or `weights_only=True`; nothing unpickles.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from maskclip_bench import storage
from maskclip_bench.backbones import transform as transforms
from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.backbones.encoders import (
    Encoder,
    HuggingFaceEncoder,
    OpenClipEncoder,
    PythonEncoder,
    TimmEncoder,
    Tokenize,
    no_text_tower,
)
from maskclip_bench.backbones.transform import Transform, make_transform
from maskclip_bench.config import read_yaml, validate
from maskclip_bench.data_files import find_declaration
from maskclip_bench.errors import CheckpointError, ConfigError, MissingDependencyError
from maskclip_bench.results.records import row_id
from maskclip_bench.runtime import Workspace, derive_seed

logger = logging.getLogger(__name__)

FOLDER_CONFIG = "open_clip_config.json"
FOLDER_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")

Precision = Literal["float32", "bfloat16"]
"""Arithmetic of the forward pass; features are always stored in float32."""


@dataclass(frozen=True, eq=False)
class Backbone:
    """A loaded row: frozen, in evaluation mode, on a device.

    B images, N patches, D backbone width, P joint width, T texts, S image size.

    Attributes:
        declaration: Its row.
        seed: Seed of its pretraining (or of its untrained weights).
        model: The underlying module.
        encoder: The model's face.
        transform: PIL image -> uint8 [3, S, S].
        weights_fingerprint: Hash of all weights and of the architecture that they are in.
        has_text: Whether it reads texts.
        device: Where it computes.
        precision: Of the forward pass.
    """

    declaration: BackboneDeclaration
    seed: int
    model: nn.Module
    encoder: Encoder
    transform: Transform
    weights_fingerprint: str
    has_text: bool
    device: torch.device
    precision: Precision = "float32"

    @property
    def name(self) -> str:
        """Name of the declaration."""
        return self.declaration.name

    @property
    def row_id(self) -> str:
        """Name of the row: the backbone's, with the seed where it is not 0."""
        return row_id(self.name, self.seed)

    @property
    def image_size(self) -> int:
        """S, in pixels."""
        return self.transform.image_size

    @property
    def transform_id(self) -> str:
        """Hash of the preprocessing."""
        return self.transform.transform_id

    @property
    def feature_point(self) -> str:
        """Where `backbone` features are taken, in words."""
        return self.encoder.feature_point

    def image_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """One forward pass, two feature points.

        Args:
            images: [B, 3, S, S]; uint8 from `transform`, or floats that are already normalized.

        Returns:
            {"backbone": [B, D]} and, with a text tower, "joint" [B, P], L2-normalised; float32.
        """
        with torch.no_grad(), self._autocast():
            outputs = self.encoder.image_outputs(self._prepare(images))
        return {point: value.float() for point, value in outputs.items()}

    def encode_image(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] -> joint embeddings [B, P], L2-normalised.

        Raises:
            ConfigError: The backbone has no joint space.
        """
        if not self.has_text:
            raise no_text_tower(self.name)
        return self.image_outputs(images)["joint"]

    def forward_features(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] -> backbone features [B, D], before any projection."""
        return self.image_outputs(images)["backbone"]

    def patch_tokens(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] -> patch tokens after the final norm, [B, N, D].

        Raises:
            ConfigError: The model gives none.
        """
        with torch.no_grad(), self._autocast():
            return self.encoder.patch_tokens(self._prepare(images)).float()

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts -> [T, P], L2-normalised.

        Raises:
            ConfigError: The backbone has no text tower.
        """
        if not self.has_text:
            raise no_text_tower(self.name)
        with torch.no_grad(), self._autocast():
            return self.encoder.encode_text(texts).float()

    def image_tensor(self, image: Image.Image) -> Tensor:
        """One image, prepared: uint8 [3, S, S]."""
        return self.transform(image)

    def _prepare(self, images: Tensor) -> Tensor:
        return self.transform.normalize(images.to(self.device, non_blocking=True))

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


@dataclass(frozen=True, eq=False)
class _Loaded:
    """What a source gives: a model, its face, its own preprocessing, and what it is called."""

    model: nn.Module
    encoder: Encoder
    preprocess: dict[str, Any]
    identity: Any
    has_text: bool


def load_backbone(
    declaration: BackboneDeclaration,
    *,
    workspace: Workspace,
    seed: int = 0,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
) -> Backbone:
    """Build the model of a row with its weights.

    Zoo models that are not on this machine are downloaded by their library.

    Args:
        declaration: The row.
        workspace: Where rows made here lie.
        seed: Which repetition of its pretraining; the seed of the weights of a `random_init` row.
        device: Where it shall compute.
        precision: Arithmetic of the forward pass.

    Raises:
        CheckpointError: The weights are missing, broken or of another architecture.
        ConfigError: The declaration does not fit the model.
        MissingDependencyError: The source needs a package that is not installed.
    """
    loaded = _LOADERS[declaration.source.kind](declaration, workspace, seed)
    place = torch.device(device)
    model = loaded.model.to(place).eval().requires_grad_(False)
    return Backbone(
        declaration=declaration,
        seed=seed,
        model=model,
        encoder=loaded.encoder,
        transform=make_transform(loaded.preprocess, declaration.preprocess),
        weights_fingerprint=storage.fingerprint([loaded.identity, state_fingerprint(model)]),
        has_text=loaded.has_text,
        device=place,
        precision=precision,
    )


def load_model(
    declaration: BackboneDeclaration, *, workspace: Workspace, seed: int = 0
) -> nn.Module:
    """The module of a row with its weights, as its library makes it: not frozen, on the CPU.

    Raises:
        MaskCLIPBenchError: See `load_backbone`.
    """
    return _LOADERS[declaration.source.kind](declaration, workspace, seed).model


def state_fingerprint(model: nn.Module) -> str:
    """SHA-256 of names, types, shapes and values of a model's tensors, in hex."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


# --- where weights lie ---------------------------------------------------------------------------


def weights_folder(
    declaration: BackboneDeclaration, workspace: Workspace, seed: int = 0
) -> Path | None:
    """The open_clip folder of a row that has one (`recipe`, `open_clip_folder`), else None."""
    source = declaration.source
    if source.recipe is not None:
        part = "teacher" if source.weights == "teacher" else "model"
        return workspace.pretraining(source.recipe, seed) / part
    if source.open_clip_folder is not None:
        return workspace.root / Path(source.open_clip_folder).expanduser()
    return None


def missing_weights(
    declaration: BackboneDeclaration, workspace: Workspace, seed: int = 0
) -> str | None:
    """What is missing of a row's weights and how to get it; None if they are on this machine.

    Nothing is loaded and nothing is downloaded.
    """
    source = declaration.source
    if source.random_init or source.python is not None:
        return None
    folder = weights_folder(declaration, workspace, seed)
    if folder is not None:
        if (folder / FOLDER_CONFIG).is_file() and _weights_file(folder) is not None:
            return None
        remedy = declaration.obtain or (
            f"Pretrain it: maskclip-bench pretrain {source.recipe}"
            if source.recipe
            else "Export or copy an open_clip folder there"
        )
        return f"no weights in {folder}. {remedy}"
    if source.checkpoint is not None:
        path = workspace.root / Path(source.checkpoint).expanduser()
        return None if path.is_file() else f"no file {path}. {declaration.obtain}".strip()
    if _cached(declaration):
        return None
    remedy = declaration.obtain or (
        "Naming the row in `run --backbone` lets its library download it"
    )
    return f"the weights of {declaration.display_name} are not in this machine's cache. {remedy}"


def weights_available(
    declaration: BackboneDeclaration, workspace: Workspace, seed: int = 0
) -> bool:
    """Whether a row's weights are on this machine."""
    return missing_weights(declaration, workspace, seed) is None


def _weights_file(folder: Path) -> Path | None:
    return next((folder / name for name in FOLDER_WEIGHTS if (folder / name).is_file()), None)


def _cached(declaration: BackboneDeclaration) -> bool:
    """Whether the zoo's weights lie in the caches of their libraries."""
    source = declaration.source
    if source.huggingface is not None:
        return Path(source.huggingface).is_dir() or _in_hub_cache(
            source.huggingface, ("model.safetensors", "pytorch_model.bin")
        )
    if source.open_clip is not None:
        import open_clip.pretrained

        if source.pretrained is not None and Path(source.pretrained).is_file():
            return True
        config = open_clip.pretrained.get_pretrained_cfg(source.open_clip, source.pretrained or "")
        url, hub = config.get("url", ""), config.get("hf_hub", "")
        cache = Path("~/.cache/clip").expanduser()
        if url and (cache / url.rpartition("/")[2]).is_file():
            return True
        repository = "/".join(hub.split("/")[:2])
        file = "/".join(hub.split("/")[2:])
        names = (file,) if file else (*FOLDER_WEIGHTS, "open_clip_model.safetensors")
        return bool(repository) and _in_hub_cache(repository, names)
    import timm

    cfg = timm.get_pretrained_cfg(source.timm or "")
    if cfg is None or not cfg.hf_hub_id:
        return False
    return _in_hub_cache(
        cfg.hf_hub_id, (cfg.hf_hub_filename or "model.safetensors", "pytorch_model.bin")
    )


def _in_hub_cache(repository: str, files: Sequence[str]) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in files)


# --- sources -------------------------------------------------------------------------------------


def _load_folder(declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> _Loaded:
    folder = weights_folder(declaration, workspace, seed)
    assert folder is not None
    missing = missing_weights(declaration, workspace, seed)
    if missing is not None:
        raise CheckpointError(f"{declaration.name}: {missing}")
    return load_folder(folder)


def load_folder(folder: Path) -> _Loaded:
    """Load an open_clip folder (`open_clip_config.json` and weights), as pretraining exports it.

    Raises:
        CheckpointError: It is broken, or its weights do not fit its configuration.
    """
    import open_clip

    import maskclip_bench.modeling  # noqa: F401  (registers the demo ViT in timm)

    try:
        config = json.loads((folder / FOLDER_CONFIG).read_text(encoding="utf-8"))
        with _quiet():
            model = open_clip.create_model(f"local-dir:{folder.absolute()}", device="cpu")
        preprocess = open_clip.get_model_preprocess_cfg(model)
        tokenize = folder_tokenizer(folder, config)
    except Exception as error:  # safetensors, torch and open_clip each have their own
        raise CheckpointError(
            f"{folder} cannot be loaded ({type(error).__name__}: {_short(error)}). It is damaged "
            "or of another version; export it again, or remove it and pretrain again."
        ) from error
    return _Loaded(
        model=model,
        encoder=OpenClipEncoder(model, tokenize),
        preprocess=transforms.from_open_clip(preprocess),
        identity=_without_paths(config["model_cfg"]),
        has_text=True,
    )


def _without_paths(model_cfg: dict[str, Any]) -> dict[str, Any]:
    """The architecture without the place of the tokenizer's file, which moves with the folder."""
    text = {k: v for k, v in model_cfg.get("text_cfg", {}).items() if k != "tokenizer_kwargs"}
    return {**model_cfg, "text_cfg": text}


def folder_tokenizer(folder: Path, config: dict[str, Any]) -> Tokenize:
    """The tokenizer of an open_clip folder; a merges file that it names may lie inside it."""
    import open_clip

    text_config = config["model_cfg"].get("text_cfg", {})
    options = dict(text_config.get("tokenizer_kwargs", {}))
    if "bpe_path" in options:
        inside = folder / Path(options["bpe_path"]).name
        options["bpe_path"] = str(inside if inside.is_file() else options["bpe_path"])
    return open_clip.get_tokenizer(f"local-dir:{folder.absolute()}", **options)


def _load_random_recipe(
    declaration: BackboneDeclaration, workspace: Workspace, seed: int
) -> _Loaded:
    """The architecture of a recipe with fresh weights."""
    from maskclip_bench.data.config import AugmentConfig
    from maskclip_bench.data.tokenizer import TokenizerConfig, load_tokenizer
    from maskclip_bench.modeling.model import ModelConfig, build_model

    recipe = declaration.source.recipe
    assert recipe is not None
    path = find_declaration(
        "configs/pretrain", recipe, singular="recipe", listing="maskclip-bench list recipes"
    )
    values = read_yaml(path)
    config = validate(values.get("model", {}), ModelConfig, where=f"{path}: model")
    tokenizer = load_tokenizer(
        validate(values.get("tokenizer", {}), TokenizerConfig, where=f"{path}: tokenizer")
    )
    augment = validate(
        values.get("data", {}).get("augment", {}), AugmentConfig, where=f"{path}: data.augment"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "random_init", recipe))
        model = build_model(config)
    return _Loaded(
        model=model,
        encoder=OpenClipEncoder(model, tokenizer),
        preprocess={"image_size": config.image_size, "mean": augment.mean, "std": augment.std},
        identity=config.model_dump(mode="json"),
        has_text=True,
    )


def _load_recipe(declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> _Loaded:
    if declaration.source.random_init:
        return _load_random_recipe(declaration, workspace, seed)
    return _load_folder(declaration, workspace, seed)


def _load_open_clip(declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> _Loaded:
    import open_clip

    source = declaration.source
    name = source.open_clip
    assert name is not None
    try:
        with torch.random.fork_rng(devices=[]), _quiet():
            torch.manual_seed(derive_seed(seed, "random_init", name))
            model = open_clip.create_model(
                name,
                pretrained=source.pretrained,
                device="cpu",
                force_quick_gelu=trained_with_quick_gelu(name, source.pretrained),
            )
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(
            f"open_clip: no {name!r} with pretrained {source.pretrained!r} here: {_short(error)}. "
            "python -c 'import open_clip; print(open_clip.list_pretrained())' lists its models; "
            "one that is not on this machine needs network access once."
        ) from error
    preprocess = open_clip.get_model_preprocess_cfg(model)
    quick_gelu = _uses_quick_gelu(model)
    return _Loaded(
        model=model,
        encoder=OpenClipEncoder(model, open_clip.get_tokenizer(name)),
        preprocess=transforms.from_open_clip(preprocess),
        identity=["open_clip", name, quick_gelu],
        has_text=True,
    )


def trained_with_quick_gelu(name: str, pretrained: str | None) -> bool:
    """Whether weights need OpenAI's GELU; open_clip only warns when the architecture lacks it."""
    import open_clip.pretrained

    config = open_clip.pretrained.get_pretrained_cfg(name, pretrained or "")
    return bool(config.get("quick_gelu", False))


def _uses_quick_gelu(model: nn.Module) -> bool:
    """The same weights with another activation are another model."""
    from open_clip.transformer import QuickGELU

    return any(isinstance(module, QuickGELU) for module in model.modules())


def _load_timm(declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> _Loaded:
    import timm
    from timm.data.config import resolve_model_data_config

    import maskclip_bench.modeling  # noqa: F401  (registers the demo ViT in timm)
    from maskclip_bench.backbones.timm_weights import load_timm_weights

    source = declaration.source
    name = source.timm
    assert name is not None
    path = None
    if source.checkpoint is not None:
        path = workspace.root / Path(source.checkpoint).expanduser()
        if not path.is_file():
            raise CheckpointError(
                f"{declaration.name}: no file {path}. {declaration.obtain}".strip()
            )
    try:
        with torch.random.fork_rng(devices=[]), _quiet():
            torch.manual_seed(derive_seed(seed, "random_init", name))
            model = timm.create_model(
                name, num_classes=0, pretrained=path is None and not source.random_init
            )
    except (RuntimeError, OSError, KeyError) as error:
        raise CheckpointError(
            f"timm cannot load {name!r}: {_short(error)}. timm.list_models(pretrained=True) "
            "lists its models; one that is not on this machine needs network access once."
        ) from error
    if path is not None:
        load_timm_weights(model, path)  # timm itself is not strict without its classifier
    return _Loaded(
        model=model,
        encoder=TimmEncoder(model),
        preprocess=transforms.from_timm(resolve_model_data_config(model)),
        identity=["timm", name.partition(".")[0]],
        has_text=False,
    )


def _load_huggingface(declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> _Loaded:
    try:
        import transformers
    except ImportError:
        raise MissingDependencyError(
            f"{declaration.name} is a Hugging Face model: pip install 'maskclip-bench[huggingface]'"
        ) from None
    name = declaration.source.huggingface
    assert name is not None
    try:
        if declaration.source.random_init:
            config = transformers.AutoConfig.from_pretrained(name)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(seed, "random_init", name))
                model = transformers.AutoModel.from_config(config)
        else:
            model = transformers.AutoModel.from_pretrained(name)
        processor = transformers.AutoImageProcessor.from_pretrained(name)
        tokenizer = None
        if hasattr(model, "get_text_features"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"Hugging Face cannot load {name!r}: {_short(error)}. Give the id of a model or a "
            "folder; one that is not on this machine needs network access once."
        ) from error

    def tokenize(texts: Sequence[str]) -> Any:
        assert tokenizer is not None
        return tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")

    encoder = HuggingFaceEncoder(model, tokenize if tokenizer is not None else None)
    return _Loaded(
        model=model,
        encoder=encoder,
        preprocess=transforms.from_huggingface(processor.to_dict()),
        identity=["huggingface", model.config.to_dict().get("model_type"), type(model).__name__],
        has_text=encoder.has_text,
    )


def _load_python(declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> _Loaded:
    source = declaration.source
    assert source.python is not None
    module_name, colon, factory_name = source.python.partition(":")
    if not colon:
        raise ConfigError(
            f"{declaration.name}: python source {source.python!r} should be 'module:factory'."
        )
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{declaration.name}: python source {source.python!r} cannot be imported ({error}). "
            "Put its folder on PYTHONPATH, or correct the name."
        ) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "random_init", source.python))
        made = factory(**source.arguments)
    if not callable(getattr(made, "encode_image", None)):
        raise ConfigError(
            f"{declaration.name}: {source.python} returned a {type(made).__name__} without "
            "encode_image(images [B, 3, H, W]) -> [B, P]."
        )
    encoder = PythonEncoder(made)
    inner = getattr(made, "model", made)
    return _Loaded(
        model=inner if isinstance(inner, nn.Module) else nn.Identity(),
        encoder=encoder,
        preprocess=dict(getattr(made, "preprocess", {})),
        identity=["python", source.python, source.arguments],
        has_text=encoder.has_text,
    )


_LOADERS = {
    "recipe": _load_recipe,
    "open_clip_folder": _load_folder,
    "open_clip": _load_open_clip,
    "timm": _load_timm,
    "huggingface": _load_huggingface,
    "python": _load_python,
}


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep open_clip's and timm's remarks on the root logger out of the display."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(max(before, logging.ERROR))
    try:
        yield
    finally:
        root.setLevel(before)


def _short(error: Exception, *, limit: int = 400) -> str:
    return " ".join(str(error).split())[:limit]
