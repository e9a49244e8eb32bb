"""Evaluation against the plain way of the common tools, written here; each case in its own process.

    python benchmarks/evaluation.py                      # all cases, a table
    python benchmarks/evaluation.py retrieval ours       # one case, as JSON

* retrieval at COCO's size (5,000 images, 25,010 captions): scores of all pairs at once, then top-k
  and one-hot vectors in chunks, as CLIP_benchmark's `zeroshot_retrieval` does, with two sizes of
  chunks; ours counts what beats the best match, both ways from one pass.
* text: a zero-shot classifier class by class with captions padded to 77 tokens, as open_clip,
  CLIP_benchmark and OpenAI's notebooks build it; ours encodes what prompts begin with together
  once, without padding.
* sweep: 45 values of C one after another with scikit-learn; ours solves each from its neighbour.

Processor time is compared, not wall time, so that other work on the machine matters less; memory is
the peak of the process above what it had before the case began. Results: evaluation.md.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

IMAGES, CAPTIONS, WIDTH = 5_000, 25_010, 512
KS = (1, 5, 10)
NUM_CLASSES = 4
SWEEP = (1_500, 500, 64, 10)
"""Training samples, held-out samples, width, classes."""
GRID = 10.0 ** np.linspace(-6, 5, 45)


def embeddings() -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Images [I, P], captions [T, P] near their image, and the image of each caption."""
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(IMAGES, WIDTH, generator=generator), dim=1)
    owner = sorted([image for image in range(IMAGES) for _ in range(5)] + list(range(10)))
    noise = torch.randn(CAPTIONS, WIDTH, generator=generator) / WIDTH**0.5
    return images, F.normalize(images[owner] + 3.0 * noise, dim=1), owner


def plain_recall(scores: torch.Tensor, positive: torch.Tensor, k: int, chunk: int) -> float:
    """CLIP_benchmark's way: top-k as one-hot vectors over all candidates, chunk by chunk."""
    hits = []
    for start in range(0, len(scores), chunk):
        part, truth = scores[start : start + chunk], positive[start : start + chunk]
        top = torch.topk(part, k, dim=1)[1]  # [B, k]
        found = F.one_hot(top, num_classes=scores.shape[1])  # [B, k, M]
        hits.append(((found * truth[:, None]).sum(dim=(1, 2)) > 0).float())
    return float(torch.cat(hits).mean())


def retrieval_plain(chunk: int) -> dict[str, Any]:
    """All scores at once, then top-k as one-hot vectors."""
    images, texts, owner = embeddings()

    def work() -> list[float]:
        scores = texts @ images.T  # [T, I]
        positive = torch.zeros_like(scores, dtype=torch.bool)
        positive[torch.arange(len(scores)), torch.tensor(owner)] = True
        return [
            recall
            for k in KS
            for recall in (
                plain_recall(scores.T, positive.T, k, chunk),
                plain_recall(scores, positive, k, chunk),
            )
        ]

    return measured(work)


def retrieval_ours() -> dict[str, Any]:
    """Ranks of both directions by counting, block by block."""
    from maskclip_bench.tasks.pair_ranks import retrieval_ranks

    images, texts, owner = embeddings()

    def work() -> list[float]:
        both = retrieval_ranks(images, texts, owner)
        return [float(ranks.hits(k).mean()) for k in KS for ranks in both]

    return measured(work)


def text_model() -> tuple[Any, Any, list[str], list[str]]:
    """An untrained ViT-B/16 of open_clip, its tokenizer, class names and templates."""
    import open_clip
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-16").eval()
    step = len(IMAGENET_CLASSNAMES) // NUM_CLASSES
    names = IMAGENET_CLASSNAMES[::step][:NUM_CLASSES]
    templates = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    return model, open_clip.get_tokenizer("ViT-B-16"), names, templates


def text_plain() -> dict[str, Any]:
    """Class by class, 77 tokens a prompt."""
    model, tokenize, names, templates = text_model()

    def work() -> list[float]:
        rows = []
        with torch.no_grad():
            for name in names:
                tokens = tokenize([template.replace("{}", name) for template in templates])
                embedded = F.normalize(model.encode_text(tokens), dim=-1)
                rows.append(F.normalize(embedded.mean(dim=0), dim=0))
        return torch.stack(rows).flatten()[:64].tolist()

    return measured(work)


def text_ours() -> dict[str, Any]:
    """Each prompt once, by length, without padding."""
    from maskclip_bench.backbones import as_backbone
    from maskclip_bench.backbones.encoders import OpenClipEncoder
    from maskclip_bench.tasks.features import FeatureStore
    from maskclip_bench.tasks.protocols.prompts import build_zero_shot_classifier

    model, tokenize, names, templates = text_model()
    encoder = OpenClipEncoder(model, tokenize)

    class Both:
        def __init__(self) -> None:
            self.model = model

        def encode_image(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :512]

        def encode_text(self, texts: list[str]) -> torch.Tensor:
            return encoder.encode_text(texts)

    half = (0.5, 0.5, 0.5)
    backbone = as_backbone(Both(), image_size=16, mean=half, std=half, name="open_clip")
    store = FeatureStore()

    def work() -> list[float]:
        classifier = build_zero_shot_classifier(
            [[name] for name in names], templates, lambda texts: store.texts(backbone, texts)
        )
        return classifier.flatten()[:64].tolist()

    return measured(work)


def sweep_data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features [N, D], labels [N], and which are held out."""
    train, held_out, width, classes = SWEEP
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (train + held_out,), generator=generator)
    centres = torch.randn(classes, width, generator=generator)
    noise = torch.randn(len(labels), width, generator=generator)
    scale = torch.logspace(0, -2, width)  # features of a backbone are far from white
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[train:] = True
    return (0.35 * centres[labels] + noise) * scale, labels, mask


def sweep_plain() -> dict[str, Any]:
    """scikit-learn's L-BFGS from zero for each C."""
    import warnings

    from sklearn.linear_model import LogisticRegression

    features, labels, held_out = sweep_data()
    x, y = features.numpy(), labels.numpy()
    mask = held_out.numpy()

    def work() -> list[float]:
        accuracies = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says where it did not converge
            for c in GRID:
                probe = LogisticRegression(C=c, max_iter=1000).fit(x[~mask], y[~mask])
                accuracies.append(float((probe.predict(x[mask]) == y[mask]).mean()))
        return [max(accuracies)]

    return measured(work)


def sweep_ours() -> dict[str, Any]:
    """Each C from its nearest neighbour."""
    from maskclip_bench.tasks.protocols.logistic import LogisticSolver

    features, labels, held_out = sweep_data()

    def work() -> list[float]:
        solver = LogisticSolver(features[~held_out], labels[~held_out], SWEEP[3])
        accuracies = []
        for c in GRID:
            scores = solver.fit(float(c), exact=False)(features[held_out])
            accuracies.append(float((scores.argmax(dim=1) == labels[held_out]).float().mean()))
        return [max(accuracies)]

    return measured(work)


CASES: dict[str, dict[str, Callable[[], dict[str, Any]]]] = {
    "retrieval": {
        "ours": retrieval_ours,
        "plain, chunks of 64": lambda: retrieval_plain(64),
        "plain, chunks of 512": lambda: retrieval_plain(512),
    },
    "text": {"ours": text_ours, "plain": text_plain},
    "sweep": {"ours": sweep_ours, "plain": sweep_plain},
}


def peak_megabytes() -> float:
    """Of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(work: Callable[[], list[float]]) -> dict[str, Any]:
    """Processor seconds, wall seconds, megabytes above the start, and the answer."""
    torch.set_num_threads(1)
    before = peak_megabytes()
    began, processor = time.perf_counter(), time.process_time()
    answer = work()
    return {
        "processor_seconds": time.process_time() - processor,
        "wall_seconds": time.perf_counter() - began,
        "megabytes": peak_megabytes() - before,
        "answer": answer,
    }


def main() -> None:
    """Run a case, or all of them in processes of their own."""
    chosen = sys.argv[1:]
    if len(chosen) == 2:
        print(json.dumps(CASES[chosen[0]][chosen[1]]()))
        return
    for group in chosen or CASES:
        found = {}
        for name in CASES[group]:
            words = [sys.executable, __file__, group, name]
            output = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            found[name] = json.loads(output)
        ours = found["ours"]
        for name, result in found.items():
            difference = np.abs(np.subtract(result["answer"], ours["answer"])).max()
            print(
                f"{group:10s} {name:22s} {result['processor_seconds']:8.1f} s "
                f"({result['processor_seconds'] / ours['processor_seconds']:5.1f}x) "
                f"{result['wall_seconds']:8.1f} s wall {result['megabytes']:8.0f} MB "
                f"answer {result['answer'][0]:.4f}, differs by {difference:.1g}",
                flush=True,
            )


if __name__ == "__main__":
    main()
