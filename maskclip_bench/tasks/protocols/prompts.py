"""From class names to a zero-shot classifier: prompt sets, aliases, averaged text embeddings.

A class's vector is the mean of the L2-normalised embeddings of every template with every alias of
the class, normalised again: the order of OpenAI's notebooks, open_clip and SLIP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskclip_bench.data.class_table import IMAGENET_CLASSES
from maskclip_bench.data.readers import Dataset
from maskclip_bench.errors import ConfigError, did_you_mean, unknown_name
from maskclip_bench.tasks.declaration import PromptSet, TaskDeclaration

if TYPE_CHECKING:
    from maskclip_bench.backbones.loading import Backbone
    from maskclip_bench.tasks.protocols.base import ProtocolContext

OPEN_CLIP = "open_clip:"
"""Before the name of a list that open_clip ships (`open_clip.zero_shot_metadata`)."""

DEFAULT_LOGIT_SCALE = 100.0
"""What CLIP's own and most others end at."""

SHARED_PROMPT_SETS = {
    "class_name_only": PromptSet(templates=["{}"]),
    "slip_7_prompts": PromptSet(templates=f"{OPEN_CLIP}SIMPLE_IMAGENET_TEMPLATES"),
    "clip_80_prompts": PromptSet(templates=f"{OPEN_CLIP}OPENAI_IMAGENET_TEMPLATES"),
}
"""Sets that any data set may use: the seven best of OpenAI's templates, which SLIP and its
followers use, and all 80 of them. Numbers made with the one are not comparable to the other's."""


def prompt_set(task: TaskDeclaration, name: str) -> PromptSet:
    """A prompt set of the data set, or a shared one.

    Raises:
        UnknownNameError: Neither has that name.
    """
    known = {**SHARED_PROMPT_SETS, **task.prompt_sets}
    if name not in known:
        raise unknown_name(
            "prompt set",
            name,
            known,
            remedy=f"Add it to `prompt_sets` in tasks/{task.name}.yaml.",
        )
    return known[name]


def templates_of(prompts: PromptSet) -> list[str]:
    """The templates of a set, each with `{}` once.

    Raises:
        ConfigError: open_clip ships no list of that name.
    """
    if isinstance(prompts.templates, list):
        return prompts.templates
    return [template("{}") for template in _open_clip_list(prompts.templates)]


def prompts_content(task: TaskDeclaration, used: object = None) -> dict[str, Any]:
    """What the prompts of a data set are, word by word, for its identity.

    A list that open_clip ships counts by its words, not by its name: another version of open_clip
    may have others under the same name.

    Args:
        task: The data set.
        used: Name of the set that a protocol uses; a shared one counts too.
    """
    shared = {name: value for name, value in SHARED_PROMPT_SETS.items() if name == used}
    return {
        name: {**prompts.model_dump(mode="json"), "templates": templates_of(prompts)}
        for name, prompts in {**shared, **task.prompt_sets}.items()
    }


def class_names_content(task: TaskDeclaration) -> dict[str, Any]:
    """What the class names of a data set are, for its identity; the reader's are part of the data.

    Lists that open_clip ships count by their words.
    """
    content = task.class_names.model_dump(mode="json")
    if isinstance(content["names"], str) and content["names"] != "reader":
        content["names"] = _open_clip_list(content["names"])
    return content


def class_names_of(task: TaskDeclaration, dataset: Dataset) -> list[list[str]]:
    """Aliases of each class, in index order.

    Raises:
        ConfigError: The declared names are not as many as the data set has classes, or two classes
            have the same.
    """
    declared = task.class_names
    if declared.names == "reader":
        names: list[str | list[str]] = [_tidy(name, task) for name in dataset.class_names]
    elif isinstance(declared.names, str):
        names = _open_clip_list(declared.names)
    else:
        names = declared.names
    num_classes = len(dataset.class_names)
    if dataset.multi_labels is None:
        num_classes = max(num_classes, int(dataset.need_labels().max()) + 1)
    if len(names) < num_classes:
        raise ConfigError(
            f"{task.name} declares {len(names)} class names, and its data has "
            f"{num_classes} classes. Correct `class_names`."
        )
    aliases = [[name] if isinstance(name, str) else list(name) for name in names]
    _refuse_equal_names(aliases, task, dataset)
    return aliases


def _refuse_equal_names(aliases: list[list[str]], task: TaskDeclaration, dataset: Dataset) -> None:
    """Two classes with the same words cannot be told apart, and one of them is probably wrong.

    ImageNet's published lists have such classes (crane, missile, sunglasses), and stay as they are.
    """
    published = isinstance(task.class_names.names, str) and (
        task.class_names.names != "reader"
        or (dataset.classes is not None and dataset.classes.source == IMAGENET_CLASSES)
    )
    first: dict[tuple[str, ...], int] = {}
    for index, words in enumerate(aliases):
        same = first.setdefault(tuple(words), index)
        if same != index and not published:
            raise ConfigError(
                f"{task.name}: the classes {same} and {index} are both called "
                f"{' / '.join(words)!r}, so no text can tell them apart. Correct the class list, "
                "or set `class_names.names`."
            )


def prompts_of(class_names: Sequence[Sequence[str]], templates: Sequence[str]) -> list[list[str]]:
    """Of each class, every template with every alias.

    Example:
        >>> prompts_of([["cat", "tabby"], ["dog"]], ["a {}."])
        [['a cat.', 'a tabby.'], ['a dog.']]
    """
    return [
        [template.replace("{}", alias) for alias in aliases for template in templates]
        for aliases in class_names
    ]


def build_zero_shot_classifier(
    class_names: Sequence[Sequence[str]],
    templates: Sequence[str],
    encode: Callable[[Sequence[str]], Tensor],
) -> Tensor:
    """A linear classifier in the joint space.

    Args:
        class_names: Aliases of each class.
        templates: With `{}` once.
        encode: Texts -> [T, P], L2-normalised.

    Returns:
        [C, P], L2-normalised.
    """
    prompts = prompts_of(class_names, templates)
    embeddings = encode([prompt for of_class in prompts for prompt in of_class])  # [T, P]
    owner = torch.tensor([index for index, of_class in enumerate(prompts) for _ in of_class])
    sums = torch.zeros(len(prompts), embeddings.shape[1], dtype=torch.float64)
    sums.index_add_(0, owner, embeddings.double().cpu())
    return F.normalize(sums, dim=-1).float()


def zero_shot_logit_weights(context: ProtocolContext, dataset: Dataset, prompts: str) -> Tensor:
    """A zero-shot classifier whose scores are the model's own logits.

    Args:
        context: Of the cell.
        dataset: A split with the classes.
        prompts: Name of a prompt set.

    Returns:
        [C, P], each of length `logit_scale_of`.

    Raises:
        ConfigError: Class names are missing, or the backbone has no text tower.
    """
    classifier = build_zero_shot_classifier(
        class_names_of(context.task, dataset),
        templates_of(prompt_set(context.task, prompts)),
        lambda texts: context.features.texts(context.backbone, texts, progress=context.progress),
    )
    return classifier * logit_scale_of(context.backbone)


def logit_scale_of(backbone: Backbone) -> float:
    """The factor between cosine and logit that a model learnt; CLIP's limit if it has none."""
    learnt = getattr(backbone.model, "logit_scale", None)
    if isinstance(learnt, Tensor) and learnt.numel() == 1:
        return float(learnt.detach().float().exp())
    return DEFAULT_LOGIT_SCALE


def _tidy(name: str, task: TaskDeclaration) -> str:
    for old, new in task.class_names.replace.items():
        name = name.replace(old, new)
    return name.lower() if task.class_names.lower else name


def _open_clip_list(reference: str) -> list:  # type: ignore[type-arg]
    from open_clip import zero_shot_metadata

    name = reference.removeprefix(OPEN_CLIP)
    known = [key for key in vars(zero_shot_metadata) if key.isupper()]
    if not reference.startswith(OPEN_CLIP) or name not in known:
        raise ConfigError(
            f"{reference!r} is no list of prompts or class names.{did_you_mean(name, known)} "
            f"Write a YAML list, or {OPEN_CLIP}NAME with one of {', '.join(known)}."
        )
    return list(getattr(zero_shot_metadata, name))
