"""The protocols on coloured squares, where the right scores are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.errors import ConfigError, DataError, UnknownNameError
from maskclip_bench.results.measurement import Measurement
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import PROTOCOLS
from maskclip_bench.tasks.measure import measure
from maskclip_bench.tasks.protocols.base import ProtocolContext, cell_fingerprint
from maskclip_bench.tasks.protocols.few_shot import draw_shots, fit_ridge
from maskclip_bench.tasks.protocols.knn import vote

from .conftest import (
    BlindEncoder,
    CollapsedEncoder,
    ColourEncoder,
    captions_task,
    squares_task,
)

MakeContext = Callable[..., ProtocolContext]
CLASSIFICATION = ("zero_shot_classification", "linear_probe", "knn", "few_shot")


def run(context: ProtocolContext, protocol: str) -> Measurement:
    return measure(
        PROTOCOLS[protocol],
        context.task,
        context.backbone,
        workspace=context.workspace,
        features=context.features,
    )


@pytest.mark.parametrize("protocol", CLASSIFICATION)
def test_classification__a_perfect_encoder_scores_one(
    protocol: str, make_context: MakeContext
) -> None:
    found = run(make_context(protocol, squares_task(), ColourEncoder()), protocol)
    primary = found.metrics[found.primary_metric]
    assert primary.value == 1.0
    assert primary.chance_level == pytest.approx(1 / 6)
    assert len(found.outcomes) == 24
    assert found.outcomes["group"].nunique() == 12
    assert found.outcomes["sample_id"].iloc[0] == "c0/0.png"


@pytest.mark.parametrize("protocol", [*CLASSIFICATION, "retrieval"])
def test_collapsed_model__scores_chance(protocol: str, make_context: MakeContext) -> None:
    task = captions_task() if protocol == "retrieval" else squares_task()
    found = run(make_context(protocol, task, CollapsedEncoder()), protocol)
    for name, metric in found.metrics.items():
        assert metric.value == pytest.approx(metric.chance_level), name


def test_zero_shot__details_and_metrics(make_context: MakeContext) -> None:
    found = run(
        make_context("zero_shot_classification", squares_task(), ColourEncoder()),
        "zero_shot_classification",
    )
    assert set(found.metrics) == {"top1_accuracy", "top5_accuracy", "mean_per_class_accuracy"}
    assert found.preset == "two"
    assert found.details["num_prompts"] == 12
    assert found.details["num_templates"] == 2
    assert found.outcomes["prediction"].tolist() == found.outcomes["label"].tolist()


def test_zero_shot__wrong_names_permute_the_answers(make_context: MakeContext) -> None:
    names = ["green", "red", "blue", "yellow", "purple", "cyan"]
    context = make_context(
        "zero_shot_classification", squares_task(class_names={"names": names}), ColourEncoder()
    )
    found = run(context, "zero_shot_classification")
    assert found.metrics["top1_accuracy"].value == pytest.approx(4 / 6)
    assert found.outcomes["prediction"].tolist()[:8] == [1] * 4 + [0] * 4


def test_zero_shot__answers_among_the_classes_present(make_context: MakeContext) -> None:
    names = [*("red", "green", "blue", "yellow", "purple", "cyan"), "black", "white"]
    task = squares_task(class_names={"names": names, "present_only": True})
    found = run(make_context("zero_shot_classification", task, ColourEncoder()), task_name())
    assert found.details["num_classes"] == 6
    assert found.metrics["top1_accuracy"].chance_level == pytest.approx(1 / 6)


def task_name() -> str:
    return "zero_shot_classification"


@pytest.mark.parametrize(
    ("metric", "value"), [("mean_of_top1_and_top5", 1.0), ("mean_per_class_accuracy", 1.0)]
)
def test_zero_shot__primary_metric_is_the_data_sets(
    metric: str, value: float, make_context: MakeContext
) -> None:
    task = squares_task(
        protocols={"zero_shot_classification": {"prompts": "two", "metric": metric}}
    )
    found = run(make_context("zero_shot_classification", task, ColourEncoder()), task_name())
    assert found.primary_metric == metric
    assert found.metrics[metric].value == value


def test_zero_shot__roc_auc_needs_two_classes(make_context: MakeContext) -> None:
    task = squares_task(
        protocols={"zero_shot_classification": {"prompts": "two", "metric": "roc_auc"}}
    )
    with pytest.raises(ConfigError, match="needs two classes, the data has 6"):
        run(make_context("zero_shot_classification", task, ColourEncoder()), task_name())


def test_zero_shot__needs_a_text_tower(make_context: MakeContext) -> None:
    context = make_context("zero_shot_classification", squares_task(), BlindEncoder())
    with pytest.raises(ConfigError, match="has no text tower"):
        run(context, "zero_shot_classification")
    timm = BackboneDeclaration(display_name="MAE", world="real", source={"timm": "vit"})
    reason = PROTOCOLS["zero_shot_classification"].left_out(squares_task(), timm)
    assert reason == "MAE has no text tower, which Zero-shot needs"
    assert PROTOCOLS["knn"].left_out(squares_task(), timm) is None


@pytest.mark.parametrize("protocol", ["linear_probe", "knn", "few_shot"])
def test_probes__work_without_a_text_tower(protocol: str, make_context: MakeContext) -> None:
    found = run(make_context(protocol, squares_task(), BlindEncoder()), protocol)
    assert found.metrics[found.primary_metric].value > 0.9


def test_linear_probe__is_fitted_once_for_two_test_splits(make_context: MakeContext) -> None:
    encoder = ColourEncoder()
    first = run(make_context("linear_probe", squares_task(), encoder), "linear_probe")
    seen = encoder.images_seen
    assert seen == 48 + 24
    task = squares_task(splits={"train": "train", "test": "train"})
    second = run(make_context("linear_probe", task, encoder), "linear_probe")
    assert encoder.images_seen == seen
    assert second.details["C"] == first.details["C"]
    assert second.details["search_on"] == "20% of train"


def test_linear_probe__searches_on_a_validation_split(make_context: MakeContext) -> None:
    task = squares_task(splits={"train": "train", "validation": "val", "test": "val"})
    found = run(make_context("linear_probe", task, ColourEncoder()), "linear_probe")
    assert found.details["search_on"] == "validation split"
    assert len(found.details["data"]) == 2


def test_linear_probe__fixed_c_on_joint_embeddings(make_context: MakeContext) -> None:
    task = squares_task(protocols={"linear_probe": {"preset": "clip_readme_logistic"}})
    found = run(make_context("linear_probe", task, ColourEncoder()), "linear_probe")
    assert found.details["C"] == pytest.approx(0.316)
    assert found.details["normalized"] is True
    with pytest.raises(ConfigError, match="has no text tower"):
        run(make_context("linear_probe", task, BlindEncoder()), "linear_probe")


def test_linear_probe__a_preset_that_augments_is_not_faked() -> None:
    task = squares_task(protocols={"linear_probe": {"preset": "slip_linear"}})
    with pytest.raises(ConfigError, match=r"clip_logistic.*slip_linear"):
        PROTOCOLS["linear_probe"].settings_of(task)


def test_vote__by_hand() -> None:
    bank = F.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), dim=1)
    test = torch.tensor([[1.0, 0.0]])
    labels = torch.tensor([0, 1, 1])
    scores = vote(test, bank, labels, num_classes=3, num_neighbors=(1, 3), temperature=0.07)
    assert scores[1][0].tolist() == pytest.approx([np.exp(1 / 0.07), 0, 0], rel=1e-5)
    near = float(bank[1, 0])
    expected = [np.exp(1 / 0.07), np.exp(near / 0.07) + 1.0, 0.0]
    assert scores[3][0].tolist() == pytest.approx(expected, rel=1e-4)


def test_vote__equals_a_naive_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    bank = F.normalize(torch.randn(50, 4, generator=generator), dim=1)
    test = F.normalize(torch.randn(20, 4, generator=generator), dim=1)
    labels = torch.randint(0, 5, (50,), generator=generator)
    fast = vote(test, bank, labels, num_classes=5, num_neighbors=(7,))[7]
    for row, query in enumerate(test):
        similarity = bank @ query
        votes = torch.zeros(5)
        for index in similarity.argsort(descending=True)[:7]:
            votes[labels[index]] += (similarity[index] / 0.07).exp()
        torch.testing.assert_close(fast[row], votes, rtol=1e-4, atol=1e-2)


def test_knn__reports_all_k_that_the_bank_allows(make_context: MakeContext) -> None:
    found = run(make_context("knn", squares_task(), ColourEncoder()), "knn")
    assert {name for name in found.metrics if "_k" in name} == {
        "top1_accuracy_k10",
        "top1_accuracy_k48",
    }
    assert found.details["num_neighbors"] == 20


def test_few_shot__draws_are_of_every_class_and_deterministic() -> None:
    labels = np.repeat([0, 1, 2], [5, 9, 7])
    chosen = draw_shots(labels, 3, seed=1)
    assert np.bincount(labels[chosen]).tolist() == [3, 3, 3]
    assert len(set(chosen.tolist())) == 9
    assert np.array_equal(chosen, draw_shots(labels, 3, seed=1))
    assert not np.array_equal(chosen, draw_shots(labels, 3, seed=2))


def test_few_shot__leave_one_out_equals_leaving_one_out() -> None:
    """The chosen penalty is the one that naive refitting without each image chooses."""
    from maskclip_bench.tasks.protocols import few_shot

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(12, 4, generator=generator).double()
    labels = torch.arange(12) % 3
    targets = 2 * F.one_hot(labels, 3).double() - 1

    def ridge(
        x: torch.Tensor, y: torch.Tensor, penalty: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        centred = x - x.mean(0)
        gram = centred.T @ centred + penalty * torch.eye(4, dtype=torch.float64)
        weight = torch.linalg.solve(gram, centred.T @ (y - y.mean(0)))
        return weight, y.mean(0) - x.mean(0) @ weight

    variance = float((features - features.mean(0)).pow(2).sum())
    accuracy = []
    for relative in few_shot.PENALTIES:
        hits = 0
        for out in range(12):
            keep = torch.arange(12) != out
            weight, bias = ridge(features[keep], targets[keep], relative * variance)
            hits += int((features[out] @ weight + bias).argmax() == labels[out])
        accuracy.append(hits)
    assert len(set(accuracy)) > 1
    best = few_shot.PENALTIES[int(np.argmax(accuracy))] * variance
    weight, bias = fit_ridge(features.float(), labels, num_classes=3)
    expected_weight, expected_bias = ridge(features.float().double(), targets, best)
    torch.testing.assert_close(weight, expected_weight)
    torch.testing.assert_close(bias, expected_bias)


def test_few_shot__too_few_images_a_class(make_context: MakeContext) -> None:
    task = squares_task(protocols={"few_shot": {"shots": 10}})
    with pytest.raises(DataError, match="wants 10 train images of every class; the smallest"):
        run(make_context("few_shot", task, ColourEncoder()), "few_shot")


def test_retrieval__a_perfect_encoder(make_context: MakeContext) -> None:
    found = run(make_context("retrieval", captions_task(), ColourEncoder()), "retrieval")
    assert found.metrics["image_to_text_recall@1"].value == 1.0
    assert found.metrics["text_to_image_recall@1"].value == 1.0
    assert found.metrics["mean_recall@1"].value == 1.0
    assert found.details["num_texts"] == 12
    assert len(found.outcomes) == 18
    assert found.outcomes["group"].nunique() == 6
    assert found.outcomes["image_to_text_recall@1"].isna().sum() == 12
    assert found.metrics["image_to_text_recall@1"].chance_level == pytest.approx(1 / 6)


def test_retrieval__captions_can_be_cut_and_prefixed(make_context: MakeContext) -> None:
    encoder = ColourEncoder()
    task = captions_task(captions_per_image=1, preset="a_photo_of")
    found = run(make_context("retrieval", task, encoder), "retrieval")
    assert found.details["num_texts"] == 6
    assert "a photo of a red square" in encoder.texts_seen
    assert found.preset == "a_photo_of"


def test_retrieval__ties_are_told(make_context: MakeContext) -> None:
    found = run(make_context("retrieval", captions_task(), CollapsedEncoder()), "retrieval")
    ties = found.details["ties"]["text_to_image_recall"]
    assert ties["tied_queries"] == 1.0
    assert (ties["optimistic@1"], ties["pessimistic@1"]) == (1.0, 0.0)


def test_retrieval__needs_captions(make_context: MakeContext) -> None:
    task = squares_task(protocols={"retrieval": {}})
    with pytest.raises(ConfigError, match="has no captions"):
        run(make_context("retrieval", task, ColourEncoder()), "retrieval")


def test_classification__needs_labels(make_context: MakeContext) -> None:
    task = captions_task()
    task = task.model_copy(update={"protocols": {"zero_shot_classification": {"prompts": "x"}}})
    with pytest.raises(ConfigError, match="has no class labels"):
        run(make_context("zero_shot_classification", task, ColourEncoder()), task_name())


@pytest.mark.parametrize("protocol", ["linear_probe", "knn"])
def test_missing_split_is_named(protocol: str, make_context: MakeContext) -> None:
    context = make_context(protocol, squares_task(splits={"test": "val"}), ColourEncoder())
    with pytest.raises(ConfigError, match="squares has no split 'train'; it declares test"):
        run(context, protocol)


def test_fingerprints__change_with_what_matters(workspace: Workspace) -> None:
    protocol = PROTOCOLS["zero_shot_classification"]
    base = protocol.task_fingerprints(squares_task(), workspace)
    assert base == protocol.task_fingerprints(squares_task(display_name="Other"), workspace)
    for change in (
        {"task_version": 2},
        {"prompt_sets": {"two": {"templates": ["a {}"]}}},
        {"prompt_sets": {"two": {"templates": ["a {} square", "{}"], "version": 2}}},
        {"class_names": {"names": ["a", "b", "c", "d", "e", "f"]}},
        {"splits": {"test": "train"}},
    ):
        changed = protocol.task_fingerprints(squares_task(**change), workspace)
        assert cell_fingerprint(changed) != cell_fingerprint(base), change
    train_only = squares_task(splits={"train": "val", "test": "val"})
    assert protocol.task_fingerprints(train_only, workspace) == base


def test_protocols__unknown_name() -> None:
    assert PROTOCOLS.get_known("knn").name == "knn"
    with pytest.raises(UnknownNameError, match=r"No protocol 'kn'. Did you mean 'knn'"):
        PROTOCOLS.get_known("kn")
