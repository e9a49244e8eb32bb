"""Conformance tests for extensions: call one from your own test, with your class or its name.

    from maskclip_bench.testing import check_method, check_protocol, check_family, check_reader

    def test_my_method() -> None:
        check_method(MyMethod, {"my_weight": 0.5}, changes={"my_weight": 0.1})

Each raises `AssertionError` with what does not hold. They run in seconds on a CPU, use a model of a
few thousand weights, and need no network. `docs/extending.md` has a worked example of each.
"""

from __future__ import annotations

import math
import pickle
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskclip_bench.config import Declaration, validate
from maskclip_bench.errors import ConfigError, MaskCLIPBenchError

if TYPE_CHECKING:
    from torch import Tensor

    from maskclip_bench.data.batch import Batch
    from maskclip_bench.data.readers import ReaderDeclaration
    from maskclip_bench.modeling.model import ModelConfig
    from maskclip_bench.pretrain.methods.base import Method
    from maskclip_bench.results.measurement import Measurement
    from maskclip_bench.tasks.declaration import TaskDeclaration
    from maskclip_bench.tasks.protocols.base import Protocol

VOCABULARY, IMAGE_SIZE, NUM_PAIRS = 64, 48, 8


# --- methods -------------------------------------------------------------------------------------


def tiny_model() -> ModelConfig:
    """A ViT of 96 x 4 and a text tower of 32 x 2: the architecture that methods are checked on."""
    from maskclip_bench.modeling import DEMO_VIT, ModelConfig, TextConfig, VisionConfig

    return ModelConfig(
        proj_dim=24,
        image_size=IMAGE_SIZE,
        vision=VisionConfig(timm_model=DEMO_VIT),
        text=TextConfig(context_length=16, vocab_size=VOCABULARY, width=32, num_heads=2, depth=2),
    )


def tiny_batch(*, num_ssl_views: int = 0, seed: int = 0) -> Batch:
    """Eight pairs of noise images [3, 48, 48] and random captions of 3 to 12 words."""
    import torch

    from maskclip_bench.data.batch import Batch

    generator = torch.Generator().manual_seed(4)
    images = torch.randn(NUM_PAIRS, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    views = tuple(
        images + 0.3 * torch.randn(images.shape, generator=generator) for _ in range(num_ssl_views)
    )
    captions = torch.zeros(NUM_PAIRS, 12, dtype=torch.int64)
    for row, length in zip(captions, (12, 3, 7, 5, 9, 4, 11, 6), strict=True):
        row[1 : length - 1] = torch.randint(1, VOCABULARY - 2, (length - 2,), generator=generator)
        row[0], row[length - 1] = VOCABULARY - 2, VOCABULARY - 1
    return Batch(images, captions, views, torch.Generator().manual_seed(seed))


def check_method(
    method: type[Method] | str,
    fields: Mapping[str, Any] | None = None,
    *,
    changes: Mapping[str, Any] | None = None,
    exempt: Collection[str] = (),
    num_steps: int = 30,
) -> None:
    """Check a pretraining method: its terms, its gradients, its randomness, and that it learns.

    Args:
        method: The class, or a registered name.
        fields: Values of its `Config` that make it small.
        changes: Field -> another value, for every field of its `Config`: each must change the
            losses of three steps or the number of weights. A missing field is an error. A field
            that is only allowed beside others is given as {field: value, other: value}, and is
            compared with the others alone.
        exempt: Fields that act only elsewhere, such as over several processes.
        num_steps: AdamW steps on one batch, in which the loss must fall.

    Raises:
        AssertionError: Something does not hold; says what.
    """
    import torch

    from maskclip_bench.pretrain.methods import METHODS

    cls: Any = METHODS[method] if isinstance(method, str) else method
    values = dict(fields or {})
    built = _build(cls, values)
    terms = built(tiny_batch(num_ssl_views=cls.num_ssl_views))
    _check_terms(cls, terms)
    terms["loss"].backward()
    without = [n for n, p in built.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, f"{cls.__name__}: no gradient reaches {without[:5]}; freeze or remove them"
    wrong = [
        n
        for n, p in built.named_parameters()
        if p.grad is not None and not bool(torch.isfinite(p.grad).all())
    ]
    assert not wrong, f"{cls.__name__}: the gradient of {wrong[:5]} is not finite"
    first, again = (_loss(cls, values, ambient=seed) for seed in (1, 2))
    assert first == again, (
        f"{cls.__name__}: the loss depends on torch's global generator ({first} and {again}); "
        "draw from batch.generator"
    )
    _check_learns(cls, values, num_steps)
    if changes is not None:
        _check_every_field(cls, values, changes, exempt)


def _build(cls: Any, fields: Mapping[str, Any]) -> Method:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = validate(fields, cls.Config, where=cls.__name__)
        return cls(config, tiny_model()).train()  # type: ignore[no-any-return]


def _loss(cls: Any, fields: Mapping[str, Any], *, ambient: int = 0) -> float:
    import torch

    built = _build(cls, fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(ambient)
        return float(built(tiny_batch(num_ssl_views=cls.num_ssl_views))["loss"].detach())


def _check_terms(cls: Any, terms: Mapping[str, Tensor]) -> None:
    assert "loss" in terms, f"{cls.__name__} returns no 'loss' (keys: {sorted(terms)})"
    for name, value in {name: term.detach() for name, term in terms.items()}.items():
        assert value.ndim == 0, f"{cls.__name__}: {name} has the shape {tuple(value.shape)}"
        assert math.isfinite(float(value)), f"{cls.__name__}: {name} is {float(value)}"
        assert name == "loss" or name.endswith("_loss"), f"{cls.__name__}: {name} ends in no _loss"
    loss = float(terms["loss"].detach())
    total = sum(float(value.detach()) for name, value in terms.items() if name != "loss")
    assert abs(total - loss) <= 1e-4 * max(1.0, abs(total)), (
        f"{cls.__name__}: the terms sum to {total}, and loss is {loss}"
    )


def _losses(cls: Any, fields: Mapping[str, Any], num_steps: int) -> tuple[list[float], int]:
    """Losses of AdamW steps on one batch, and the number of weights."""
    import torch

    built = _build(cls, fields)
    trained = [parameter for parameter in built.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    losses = []
    for step in range(1, num_steps + 1):
        loss = built(tiny_batch(num_ssl_views=cls.num_ssl_views))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        logged = built.after_step(step=step, total_steps=num_steps)
        losses.append(float(loss.detach()))
        wrong = {name: value for name, value in logged.items() if not math.isfinite(value)}
        assert not wrong, f"{cls.__name__}: after_step logs {wrong} at step {step}"
    return losses, sum(parameter.numel() for parameter in built.parameters())


def _check_learns(cls: Any, fields: Mapping[str, Any], num_steps: int) -> None:
    losses, _ = _losses(cls, fields, num_steps)
    assert losses[-1] < losses[0], (
        f"{cls.__name__}: the loss went from {losses[0]:.4f} to {losses[-1]:.4f} in {num_steps} "
        "steps on one batch"
    )


def _check_every_field(
    cls: Any, fields: Mapping[str, Any], changes: Mapping[str, Any], exempt: Collection[str]
) -> None:
    declared = set(cls.Config.model_fields) - set(exempt)
    assert declared <= set(changes), (
        f"{cls.__name__}: give another value for {sorted(declared - set(changes))} in `changes`"
    )
    assert set(changes) <= declared, f"{cls.__name__} has no {sorted(set(changes) - declared)}"
    same = []
    for name, value in changes.items():
        change = value if isinstance(value, Mapping) and name in value else {name: value}
        others = {other: v for other, v in change.items() if other != name}
        before = _losses(cls, {**fields, **others}, 3)
        if _losses(cls, {**fields, **change}, 3) == before:
            same.append(name)
    assert not same, f"{cls.__name__}: changing {same} changes neither the losses nor the weights"


# --- protocols -----------------------------------------------------------------------------------

CLASSES = ("amber", "blue", "green")
COLOURS = ((210, 150, 30), (40, 60, 200), (50, 170, 60))
NUM_TRAIN, NUM_TEST = 6, 4
"""Images a class of the data set that protocols are checked on."""


def tiny_images(folder: Path) -> TaskDeclaration:
    """A data set of three colours, 6 train and 4 test images a class, drawn below `folder`."""
    from PIL import Image

    from maskclip_bench.api import image_folder

    for split, count in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        for name, colour in zip(CLASSES, COLOURS, strict=True):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                shade = tuple(value + 3 * index for value in colour)
                image = Image.new("RGB", (24 + index, 20), shade)
                image.save(folder / split / name / f"{index}.png")
    return image_folder(folder, name="colours")


def check_protocol(
    protocol: Protocol, task: TaskDeclaration | None = None, *, workspace: Path | None = None
) -> None:
    """Check a protocol that works on frozen features, or one that trains through the backbone.

    A model that reads the colour of an image is measured twice, with equal results; features that
    are not finite are refused; a model that gives one vector for all images is at chance.

    Args:
        protocol: An instance.
        task: What to measure on; default: three classes of coloured images. Its `protocols` must
            name the protocol unless it is the default.
        workspace: A folder for what the protocol writes; default: a temporary one.

    Raises:
        AssertionError: Something does not hold; says what.
    """
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) if workspace is None else workspace
        if task is None:
            task = tiny_images(place / "colours")
            task = task.model_copy(update={"protocols": {protocol.name: {}}})
        _check_protocol(protocol, task, place)


def _check_protocol(protocol: Protocol, task: TaskDeclaration, place: Path) -> None:
    name = type(protocol).__name__
    assert protocol.name, f"{name} has no name"
    assert protocol.title, f"{name} has no title, which tables show"
    _check_declaration(protocol.settings_model)
    first, again = (_measure(protocol, task, place, _colour_of) for _ in range(2))
    assert first.metrics == again.metrics, f"{name}: two runs give {first.metrics}, {again.metrics}"
    assert first.outcomes.equals(again.outcomes), f"{name}: two runs give different outcomes"
    primary = first.metrics[first.primary_metric]
    chance, sign = primary.chance_level, 1 if primary.higher_is_better else -1
    assert chance is not None or sign < 0, f"{name}: {first.primary_metric} has no chance level"
    value = _measure(protocol, task, place, _one_vector).metrics[first.primary_metric].value
    above = chance is not None and sign * (value - chance) > 1e-6  # an error need not have one
    assert not above, f"{name}: a model that tells nothing apart scores {value}, chance is {chance}"
    try:
        scored = _measure(protocol, task, place, _colour_of, broken=True)
    except MaskCLIPBenchError:
        return
    value = scored.metrics[scored.primary_metric].value
    raise AssertionError(f"{name}: features that are not finite are scored, as {value}")


def _colour_of(images: Tensor) -> Tensor:
    """Images [B, 3, S, S] -> their mean colour and a constant, [B, 4]."""
    import torch

    means = images.mean(dim=(2, 3))
    return torch.cat([means, torch.ones_like(means[:, :1])], dim=1)


def _one_vector(images: Tensor) -> Tensor:
    """Images [B, 3, S, S] -> the same vector for each, [B, 4]."""
    return images.new_ones(len(images), 4)


def _texts(texts: Sequence[str]) -> Tensor:
    """Texts -> the colour that they name, in `_colour_of`'s space, [T, 4]."""
    import torch

    found = [
        next((c for n, c in zip(CLASSES, COLOURS, strict=True) if n in t), None) for t in texts
    ]
    return torch.tensor([[v / 127.5 - 1 for v in c or (128, 128, 128)] + [1.0] for c in found])


def _measure(
    protocol: Protocol,
    task: TaskDeclaration,
    place: Path,
    encode: Callable[[Tensor], Tensor],
    *,
    broken: bool = False,
) -> Measurement:
    from maskclip_bench.backbones import as_backbone
    from maskclip_bench.runtime import Workspace
    from maskclip_bench.tasks.features import FeatureStore, ImageFeatures
    from maskclip_bench.tasks.measure import measure

    class Broken(FeatureStore):
        """Features of which one value is not a number, as if the backbone's check had missed it."""

        def images(self, *arguments: Any, **options: Any) -> ImageFeatures:
            features = super().images(*arguments, **options)
            for tensor in (features.backbone, features.joint):
                if tensor is not None:
                    tensor[0, 0] = math.nan
            return features

    backbone = as_backbone(
        _trainable(encode, broken=broken) if protocol.runs_as_job else encode,
        image_size=16,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        encode_text=_texts,
        name="conformance",
    )
    store = Broken() if broken else FeatureStore()
    workspace = Workspace(root=Path(tempfile.mkdtemp(dir=place)), data=place)
    return measure(protocol, task, backbone, workspace=workspace, features=store)


def _trainable(encode: Callable[[Tensor], Tensor], *, broken: bool) -> Any:
    """A module with weights and the features of `encode`; if broken, NaN for plain images."""
    import torch

    class Weighted(torch.nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            plain = images.flatten(2).std(dim=2).amax(dim=1, keepdim=True) < 1e-3  # [B, 1]
            return super().forward(encode(images)).masked_fill(plain & broken, math.nan)

    module = Weighted(4, 4, bias=False)
    torch.nn.init.eye_(module.weight)
    return module


def _check_declaration(model: type[Declaration]) -> None:
    """Its fields are documented, and an unknown key is refused."""
    for field, info in model.model_fields.items():
        assert info.description, f"{model.__name__}.{field} has no docstring"
    _check_refuses({"no_such_key": 1}, model, model.__name__)


def _check_refuses(values: Mapping[str, Any], model: type[Declaration], what: str) -> None:
    """`values` hold a key that `model` does not know."""
    try:
        validate(values, model, where="conformance")
    except ConfigError:
        return
    raise AssertionError(f"{what} accepts a key that it does not know")


# --- families ------------------------------------------------------------------------------------


def check_family(
    source: Mapping[str, Any], *, seed: int = 0, workspace: Path | None = None
) -> None:
    """Check a family of models by one of its sources, whose weights must be on this machine.

    Args:
        source: As a row writes it, e.g. {"timm": "vit_tiny_patch16_224", "random_init": True}.
        seed: Of the row.
        workspace: Where relative paths of the source start.

    Raises:
        AssertionError: Something does not hold; says what.
    """
    import torch

    from maskclip_bench.backbones import BackboneDeclaration, load_backbone, missing_weights
    from maskclip_bench.runtime import Workspace

    values = {"name": "conformance", "display_name": "Conformance", "world": "real"}
    row = validate({**values, "source": dict(source)}, BackboneDeclaration, where="conformance")
    family = row.family
    wrong = {**values, "source": {**source, "no_such_key": 1}}
    _check_refuses(wrong, BackboneDeclaration, f"The source {dict(source)}")
    place = Workspace.open(workspace)
    missing = missing_weights(row, place, seed)
    assert missing is None, f"{family.name}: {missing}"
    identity = family.identity(row, workspace=place, seed=seed)
    assert identity == family.identity(row, workspace=place, seed=seed), (
        f"{family.name}: the identity of one model differs between two calls"
    )
    if row.depends_on_seed:
        other = family.identity(row, workspace=place, seed=seed + 1)
        assert other != identity, f"{family.name}: another seed has the same identity"
    ambient = torch.get_rng_state()
    first, again = (load_backbone(row, workspace=place, seed=seed) for _ in range(2))
    assert torch.equal(ambient, torch.get_rng_state()), (
        f"{family.name}: loading draws from torch's global generator; use `seeded`"
    )
    assert row.has_text in (None, first.has_text), (
        f"{family.name}: has_text is {row.has_text} before and {first.has_text} after loading"
    )
    size = first.image_size
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    for point, value in first.image_outputs(images).items():
        assert value.ndim == 2, f"{family.name}: {point} has the shape {tuple(value.shape)}"
        assert len(value) == 3, f"{family.name}: {point} has {len(value)} rows for 3 images"
        same = again.image_outputs(images)[point]
        assert torch.equal(value, same), f"{family.name}: loaded twice, {point} differs"
        alone = first.image_outputs(images[:1])[point]
        assert torch.allclose(value[:1], alone, atol=1e-4), (
            f"{family.name}: {point} of an image depends on the others in its batch"
        )
    if first.has_text:
        texts = first.encode_text(["a dog", "a longer text about two dogs"])
        joint = first.image_outputs(images)["joint"]
        assert texts.shape == (2, joint.shape[1]), (
            f"{family.name}: texts are {tuple(texts.shape)}, images {tuple(joint.shape)}"
        )


# --- readers -------------------------------------------------------------------------------------


def check_reader(
    reader: ReaderDeclaration, *, splits: Sequence[str], data_root: Path | None = None
) -> None:
    """Check a reader on a small data set that it can read.

    Args:
        reader: The declaration.
        splits: The data set's own names of its splits.
        data_root: Where a relative root of the reader starts.

    Raises:
        AssertionError: Something does not hold; says what.
    """
    from maskclip_bench.data.readers import forget, open_dataset, root_of

    kind, base = reader.kind, data_root or Path()
    _check_declaration_of_reader(reader)
    opened = [
        open_dataset(reader, split, base, what="conformance", splits=splits) for split in splits
    ]
    for dataset in opened:
        split = dataset.split
        assert len(set(dataset.sample_ids)) == len(dataset), f"{kind}: {split} repeats an id"
        assert len(dataset.groups) == len(dataset), f"{kind}: {split} has another number of groups"
        assert dataset.class_names == opened[0].class_names, (
            f"{kind}: the classes of {split} are not those of {opened[0].split}"
        )
        if dataset.labels is not None:
            low, high = int(dataset.labels.min()), int(dataset.labels.max())
            assert 0 <= low <= high < len(dataset.class_names), (
                f"{kind}: labels of {split} are {low} to {high}, classes {len(dataset.class_names)}"
            )
        pickle.dumps(dataset.read)  # worker processes get it this way
        image = dataset.image(0)
        assert image.mode == "RGB", f"{kind}: an image of {split} has the mode {image.mode}"
    prints = [dataset.fingerprint for dataset in opened]
    assert len(set(prints)) == len(prints), f"{kind}: two splits have one fingerprint"
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "copy"
        shutil.copytree(root_of(reader, base), copy)
        moved = reader.model_copy(update={"root": str(copy)})
        forget()
        same = open_dataset(moved, splits[0], base, what="conformance", splits=splits)
        assert same.fingerprint == prints[0], f"{kind}: a copy in another folder differs"
        _check_notices_a_change(moved, splits, prints[0])
    forget()


def _check_notices_a_change(reader: ReaderDeclaration, splits: Sequence[str], before: str) -> None:
    """Another byte in a file that the split is made of gives another fingerprint, or an error."""
    from maskclip_bench.data.readers import forget, open_dataset

    dataset = open_dataset(reader, splits[0], Path(), what="conformance", splits=splits)
    assert dataset.files, f"{reader.kind}: `files` is empty, so no change of a file is noticed"
    path = dataset.files[-1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    forget()
    try:
        changed = open_dataset(reader, splits[0], Path(), what="conformance", splits=splits)
        after = changed.fingerprint
    except MaskCLIPBenchError:
        return
    assert after != before, f"{reader.kind}: a changed byte in {path.name} is not noticed"


def _check_declaration_of_reader(reader: ReaderDeclaration) -> None:
    from maskclip_bench.data.readers import ReaderDeclaration

    for field, info in type(reader).model_fields.items():
        documented = info.description or field in ReaderDeclaration.model_fields
        assert documented, f"{type(reader).__name__}.{field} has no docstring"
    values = {**reader.model_dump(mode="json"), "no_such_key": 1}
    _check_refuses(values, type(reader), reader.kind)
