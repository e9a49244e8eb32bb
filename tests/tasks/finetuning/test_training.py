"""Training: it learns, goes on bit by bit after any step, and does not depend on processes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from maskclip_bench.errors import CheckpointError, TrainingError
from maskclip_bench.jobs import JobCancelled
from maskclip_bench.tasks import TaskDeclaration
from maskclip_bench.tasks.finetuning.classifier import trained_state
from maskclip_bench.tasks.finetuning.recipe import PROBE_PRESETS
from maskclip_bench.tasks.finetuning.training import TrainRun, build_optimizer, trained_classifier
from maskclip_bench.training.checkpoint import CheckpointStore
from tests.tasks.finetuning.tiny import tiny_backbone, tiny_recipe, tiny_run, tiny_vit

State = dict[str, torch.Tensor]


def trained(run: TrainRun) -> State:
    return dict(trained_state(trained_classifier(run)[0]))


def equal(one: State, other: State) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def stopped_at(step: int, run: TrainRun) -> TrainRun:
    """The run, asked to stop during a step."""
    done = [0]

    def stop() -> bool:
        done[0] += 1
        return done[0] == step

    return replace(run, stop=stop)


@pytest.mark.parametrize("step", [1, 4, 9])
def test_training__goes_on_bit_by_bit(step: int, colours: TaskDeclaration, tmp_path: Path) -> None:
    """Everything that draws is on: augmentation, mixup, stochastic depth; and the average."""
    whole = trained(tiny_run(colours, tmp_path, tiny_recipe(), folder="whole"))
    run = tiny_run(colours, tmp_path, tiny_recipe(), folder="parts")
    with pytest.raises(JobCancelled):
        trained_classifier(stopped_at(step, run))
    assert [path.stem for path in CheckpointStore(run.folder.checkpoints, keep=2).paths()] == [
        f"step_{step:08d}"
    ]
    torch.manual_seed(99)  # nothing depends on the global generators
    assert equal(trained(run), whole)
    assert not run.folder.checkpoints.exists()
    other = trained(tiny_run(colours, tmp_path, tiny_recipe(), folder="other", seed=1))
    assert not equal(other, whole)


def test_training__is_not_done_again_unless_damaged(
    colours: TaskDeclaration, tmp_path: Path
) -> None:
    run = tiny_run(colours, tmp_path, tiny_recipe())
    first = trained(run)

    def told(*arguments: object) -> None:
        raise AssertionError("trained again")

    assert equal(trained(replace(run, progress=told)), first)
    content = bytearray(run.folder.trained.read_bytes())
    content[-1] ^= 1
    run.folder.trained.write_bytes(content)
    assert equal(trained(run), first)


def test_training__learns(colours: TaskDeclaration, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        epochs=12, drop_path=0, ema_decay=None, head_init_std=0.01, augmentation={}, lr=3e-3
    )
    run = tiny_run(colours, tmp_path, recipe)
    classifier, first, report = trained_classifier(run)
    images = torch.stack([run.backbone.transform(run.train.image(i)) for i in range(18)])
    with torch.no_grad():
        right = classifier(run.backbone.transform.normalize(images)).argmax(1)
    assert right.tolist() == run.train.need_labels().tolist()
    assert report["steps"] == 36
    assert report["layer_rates"] == {"0": 0.75**3, "1": 0.75**2, "2": 0.75, "3": 1.0}
    assert not equal(first, dict(trained_state(classifier)))


def test_training__a_frozen_tower_does_not_change(colours: TaskDeclaration, tmp_path: Path) -> None:
    recipe = PROBE_PRESETS["mae_lars"].model_copy(
        update={"global_batch_size": 6, "micro_batch_size": 3, "epochs": 2, "precision": "fp32"}
    )
    run = tiny_run(colours, tmp_path, recipe)
    classifier, first, _ = trained_classifier(run)
    before = tiny_vit().state_dict()
    after = classifier.encoder.model.state_dict()
    assert equal(after, before)
    last = trained_state(classifier)
    assert not torch.equal(first["head.1.weight"], last["head.1.weight"])
    assert int(last["head.0.num_batches_tracked"]) == 12


class Overflowing(nn.Module):
    """Gives numbers that are not finite once it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_vit()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.inner(images)
        return features / 0 if self.training else features


def test_training__a_loss_that_is_not_finite_ends_it(
    colours: TaskDeclaration, tmp_path: Path
) -> None:
    run = tiny_run(
        colours,
        tmp_path,
        tiny_recipe(drop_path=0, layer_decay=1),
        backbone=tiny_backbone(Overflowing()),
    )
    with pytest.raises(TrainingError, match=r"is not finite at step 0 of 9\. Lower options"):
        trained_classifier(run)
    assert not run.folder.trained.exists()


def test_training__a_checkpoint_of_another_training(
    colours: TaskDeclaration, tmp_path: Path
) -> None:
    run = tiny_run(colours, tmp_path, tiny_recipe())
    with pytest.raises(JobCancelled):
        trained_classifier(stopped_at(2, run))
    with pytest.raises(CheckpointError, match="is of another training"):
        trained_classifier(replace(run, num_classes=4))


def test_lars__as_in_moco_v3() -> None:
    """Matrices are scaled by their norms, vectors are not."""
    recipe = PROBE_PRESETS["mae_lars"]
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 4, generator=generator))
    bias = nn.Parameter(torch.randn(3, generator=generator))
    expected = [weight.detach().clone(), bias.detach().clone()]
    momenta = [torch.zeros(3, 4), torch.zeros(3)]
    optimizer = build_optimizer(recipe, [{"params": [weight, bias], "lr_scale": 1.0}])
    for _ in range(4):
        gradients = [torch.randn(3, 4, generator=generator), torch.randn(3, generator=generator)]
        weight.grad, bias.grad = (gradient.clone() for gradient in gradients)
        optimizer.step()
        scaled = gradients[0] * 0.001 * expected[0].norm() / gradients[0].norm()
        for index, gradient in enumerate((scaled, gradients[1])):
            momenta[index] = 0.9 * momenta[index] + gradient
            expected[index] -= recipe.lr * momenta[index]
    assert torch.allclose(weight, expected[0], atol=1e-5)
    assert torch.allclose(bias, expected[1], atol=1e-4)


WORKER = """
import sys
from pathlib import Path
import torch
from maskclip_bench import distributed
from maskclip_bench.testing import tiny_images
from maskclip_bench.tasks.finetuning.classifier import trained_state
from maskclip_bench.tasks.finetuning.scoring import scores_of
from maskclip_bench.tasks.finetuning.training import trained_classifier
from tests.tasks.finetuning.tiny import tiny_recipe, tiny_run

root = Path(sys.argv[1])
with distributed.process_group(torch.device("cpu")):
    if distributed.is_main():
        tiny_images(root / "colours")
    distributed.barrier()
    from maskclip_bench.api import image_folder
    task = image_folder(root / "colours", name="colours")
    recipe = tiny_recipe(micro_batch_size=1, augmentation={})
    run = tiny_run(task, root, recipe)
    classifier, _, _ = trained_classifier(run)
    scores = scores_of(
        classifier, run.train, run.backbone.transform, run.folder, device=torch.device("cpu")
    )
    if distributed.is_main():
        torch.save({"state": dict(trained_state(classifier)), "scores": scores}, root / "out.pt")
"""


@pytest.mark.slow
def test_training__two_processes_as_one(tmp_path: Path) -> None:
    found = []
    for count in (1, 2):
        root = tmp_path / str(count)
        root.mkdir()
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        (root / "worker.py").write_text(WORKER)
        subprocess.run(
            [sys.executable, *(launch if count > 1 else []), str(root / "worker.py"), str(root)],
            check=True,
            timeout=300,
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        )
        found.append(torch.load(root / "out.pt", weights_only=True))
    one, two = found
    for name, value in one["state"].items():
        assert torch.allclose(value, two["state"][name], atol=1e-5), name
    assert torch.allclose(one["scores"], two["scores"], atol=1e-4)
