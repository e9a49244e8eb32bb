"""Folders in open_clip's format: `open_clip_config.json`, weights, and files of the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskclip_bench import content_hash, storage
from maskclip_bench.backbones.families.base import Family, Loaded, Source, quiet, short
from maskclip_bench.errors import CheckpointError
from maskclip_bench.runtime import Workspace

if TYPE_CHECKING:
    from torch import nn

    from maskclip_bench.backbones.declaration import BackboneDeclaration
    from maskclip_bench.backbones.encoders import Tokenize

FOLDER_CONFIG = "open_clip_config.json"
FOLDER_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")

NOT_OF_THE_MODEL = ("provenance.json", "recipe.yaml", storage.CHECKSUMS)
"""Files of a folder that change no feature; so do hidden files and Markdown."""


class OpenClipFolderSource(Source):
    """A folder in open_clip's format."""

    open_clip_folder: str
    """The folder; a relative path starts at the workspace."""


class FolderFamily(Family):
    """What the families share whose weights are in open_clip folders."""

    def has_text(self, source: Any) -> bool | None:
        """open_clip's models have a text tower."""
        return True

    def has_vision_trunk(self, source: Any) -> bool:
        """The trunk of the image tower."""
        return True

    def missing(
        self, declaration: BackboneDeclaration, workspace: Workspace, seed: int
    ) -> str | None:
        """Whether the folder has a configuration and weights."""
        folder = self.weights_folder(declaration.source, workspace, seed)
        assert folder is not None
        if (folder / FOLDER_CONFIG).is_file() and weights_file(folder) is not None:
            return None
        return f"no weights in {folder}. {declaration.obtain or self.remedy(declaration.source)}"

    def remedy(self, source: Any) -> str:
        """How to get the weights, where the row does not say it."""
        return "Export or copy an open_clip folder there"

    def contents(self, declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> Any:
        """Configuration, weights and tokenizer."""
        folder = self._present(declaration, workspace, seed)
        return folder_contents(folder)

    def load(self, declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> Loaded:
        """Load the folder, after its checksums were verified."""
        return load_folder(self._present(declaration, workspace, seed))

    def without_weights(
        self, declaration: BackboneDeclaration, workspace: Workspace, seed: int
    ) -> tuple[nn.Module, dict[str, Any] | None] | None:
        """What the folder's configuration says."""
        import open_clip

        import maskclip_bench.modeling  # noqa: F401  (registers the demo ViT in timm)

        folder = self.weights_folder(declaration.source, workspace, seed)
        if folder is None or not (folder / FOLDER_CONFIG).is_file():
            return None
        config = read_config(folder)
        _refuse_code(folder, config)
        try:
            with quiet():
                model = open_clip.create_model(
                    f"local-dir:{folder.absolute()}", device="cpu", load_weights=False
                )
        except Exception as error:  # open_clip and timm each have their own
            raise _damaged(folder, error) from error
        return model, vision_architecture(config["model_cfg"])

    def vision_trunk(self, model: nn.Module) -> nn.Module:
        """The trunk of the image tower."""
        from maskclip_bench.backbones.encoders import vision_trunk

        return vision_trunk(model)

    def _present(self, declaration: BackboneDeclaration, workspace: Workspace, seed: int) -> Path:
        missing = self.missing(declaration, workspace, seed)
        if missing is not None:
            raise CheckpointError(f"{declaration.name}: {missing}")
        folder = self.weights_folder(declaration.source, workspace, seed)
        assert folder is not None
        return folder


class OpenClipFolder(FolderFamily):
    """Models in a folder of the user's."""

    name = "open_clip_folder"
    source_model = OpenClipFolderSource

    def weights_folder(
        self, source: OpenClipFolderSource, workspace: Workspace, seed: int
    ) -> Path | None:
        """The folder itself."""
        return workspace.root / Path(source.open_clip_folder).expanduser()


def weights_file(folder: Path) -> Path | None:
    """The file of weights that open_clip would load."""
    return next((folder / name for name in FOLDER_WEIGHTS if (folder / name).is_file()), None)


def folder_contents(folder: Path) -> dict[str, str]:
    """Content hash of every file of a model folder that may change a feature, by relative name.

    Raises:
        CheckpointError: The configuration is no JSON.
        DataError: A file cannot be read.
    """
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    names = [name for name in names if _counts(name)]
    hashes = content_hash.file_hashes([folder / name for name in names])
    contents = dict(zip(names, hashes, strict=True))
    contents[FOLDER_CONFIG] = storage.fingerprint(_without_paths(read_config(folder)), length=64)
    return contents


def _counts(name: str) -> bool:
    parts = name.split("/")
    hidden = any(part.startswith(".") for part in parts)
    return not (hidden or parts[-1] in NOT_OF_THE_MODEL or name.endswith(".md"))


def read_config(folder: Path) -> dict[str, Any]:
    """`open_clip_config.json` of a folder.

    Raises:
        CheckpointError: It is missing or no JSON object with a `model_cfg`.
    """
    try:
        config = json.loads((folder / FOLDER_CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config["model_cfg"], dict):
            raise TypeError("model_cfg is no object")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from error
    return dict(config)


def vision_architecture(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What of an open_clip configuration decides the image tower: `{"open_clip": {...}}`."""
    keys = ("embed_dim", "vision_cfg", "quick_gelu")
    return {"open_clip": {key: model_cfg[key] for key in keys if key in model_cfg}}


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the bare name of the tokenizer's file, which moves with the folder."""
    text = dict(config["model_cfg"].get("text_cfg") or {})
    options = dict(text.get("tokenizer_kwargs") or {})
    if "bpe_path" in options:
        options["bpe_path"] = Path(str(options["bpe_path"])).name
    text["tokenizer_kwargs"] = options
    return {**config, "model_cfg": {**config["model_cfg"], "text_cfg": text}}


def load_folder(folder: Path) -> Loaded:
    """Load an open_clip folder, as pretraining exports it.

    Raises:
        CheckpointError: It is damaged, or its weights do not fit its configuration.
    """
    import open_clip

    import maskclip_bench.modeling  # noqa: F401  (registers the demo ViT in timm)
    from maskclip_bench.backbones import transform as transforms
    from maskclip_bench.backbones.encoders import OpenClipEncoder

    verify_folder(folder)
    config = read_config(folder)
    _refuse_code(folder, config)
    try:
        with quiet():
            model = open_clip.create_model(
                f"local-dir:{folder.absolute()}", device="cpu", weights_only=True
            )
        preprocess = open_clip.get_model_preprocess_cfg(model)
        tokenize = folder_tokenizer(folder, config)
    except Exception as error:  # safetensors, torch and open_clip each have their own
        raise _damaged(folder, error) from error
    return Loaded(
        model=model,
        encoder=OpenClipEncoder(model, tokenize),
        has_text=True,
        architecture=_without_paths(config)["model_cfg"],
        **transforms.of_open_clip(preprocess),
    )


def verify_folder(folder: Path) -> None:
    """Compare a model folder with its `SHA256SUMS`; folders without one are accepted.

    Raises:
        CheckpointError: A file differs from its hash or is missing; names it.
    """
    problems = storage.check_checksums(folder) or []
    wrong = [line for line in problems if not line.endswith(f"not listed in {storage.CHECKSUMS}")]
    if wrong:
        raise CheckpointError(
            f"{folder} is damaged: {'; '.join(wrong[:3])}. Export it again, or copy it again from "
            f"where it is whole. If you changed it yourself, remove {storage.CHECKSUMS}."
        )


def _refuse_code(folder: Path, config: dict[str, Any]) -> None:
    """A folder holds data; one that asks to run code of its own is refused."""
    if _asks_for_code(config["model_cfg"]):
        raise CheckpointError(
            f"{folder / FOLDER_CONFIG} sets trust_remote_code, which would run Python code from "
            "the folder. Remove that key; a model that needs code of its own is a row with "
            "source: {python: 'module:factory'}."
        )


def _asks_for_code(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value.get("trust_remote_code")) or any(map(_asks_for_code, value.values()))
    return isinstance(value, list) and any(map(_asks_for_code, value))


def folder_tokenizer(folder: Path, config: dict[str, Any]) -> Tokenize:
    """The tokenizer of an open_clip folder; a merges file that it names may be inside it."""
    import open_clip

    text_config = config["model_cfg"].get("text_cfg") or {}
    options = dict(text_config.get("tokenizer_kwargs") or {})
    if "bpe_path" in options:
        inside = folder / Path(options["bpe_path"]).name
        options["bpe_path"] = str(inside if inside.is_file() else options["bpe_path"])
    tokenize: Tokenize = open_clip.get_tokenizer(f"local-dir:{folder.absolute()}", **options)
    return tokenize


def _damaged(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{folder} cannot be loaded ({type(error).__name__}: {short(error)}). It is damaged "
        "or of another version; export it again, or remove it and pretrain again."
    )
