"""Finetuning: the image tower and a classifier on it, trained end to end with layer-wise rates.

| preset | recipe | may stand beside |
| --- | --- | --- |
| `slip_beit` | SLIP's ViT-B/16 (BEiT's script) | CLIP 80.5, SLIP 82.6, MaskCLIP 83.6 |
| `slip_beit_small` | SLIP's ViT-S/16 | CLIP 78.2, SLIP 80.3 |
| `slip_beit_large` | SLIP's ViT-L/16 | CLIP 81.0, SLIP 84.2 |
| `mae` | MAE's ViT-B/16 | MAE 83.6 (four seeds: 83.46 to 83.66) |
| `ft_clip` | FT-CLIP's ViT-B/16 | FT-CLIP 85.7 from OpenAI's weights |
| `wise_ft` | WiSE-FT's, of a zero-shot classifier | WiSE-FT's curves |
| `small` | for small data; not tuned | rows measured here |
| `demo` | for the demo world | rows of the demo |

All hyperparameters are in `tasks.finetuning.recipe`, each with its source. The published runs use
fp16 with a loss scaler, ours bf16; their test of the last epoch is ours (FT-CLIP reports the best
epoch on the test split). MaskCLIP's own recipe is not known.

WiSE-FT (Wortsman et al., arXiv 2109.01903): with `alphas`, the weights `(1 - alpha) * zero-shot +
alpha * finetuned` are tested on every split, too: metrics `top1_accuracy_alpha_0.5`. Alpha 0 is the
zero-shot classifier, alpha 1 the finetuned one. It needs the preset `wise_ft`, whose head begins as
the text classifier, and a row with a text tower.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from maskclip_bench.config import Declaration
from maskclip_bench.tasks.finetuning.recipe import FINETUNE_PRESETS
from maskclip_bench.tasks.trained_jobs import TrainedProtocol, TrainedSettings


class Settings(TrainedSettings):
    """`protocols: {finetune: ...}` of a data set."""

    preset: Literal[
        "slip_beit",
        "slip_beit_small",
        "slip_beit_large",
        "mae",
        "ft_clip",
        "wise_ft",
        "small",
        "demo",
    ] = "slip_beit"
    """The recipe."""
    alphas: list[float] = Field(default_factory=list)
    """WiSE-FT: shares of the finetuned weights that are tested, too, each from 0 to 1."""
    prompts: str | None = None
    """Prompt set of the zero-shot head (preset `wise_ft`)."""

    @model_validator(mode="after")
    def _wise_ft(self) -> Settings:
        if any(not 0 <= alpha <= 1 for alpha in self.alphas):
            raise ValueError("alphas are shares of the finetuned weights, from 0 to 1")
        if len(set(self.alphas)) != len(self.alphas):
            raise ValueError("alphas: give each once")
        if self.alphas and self.preset != "wise_ft":
            raise ValueError(
                f"alphas need a head that begins as the zero-shot classifier, and the one of "
                f"{self.preset} begins at random. Use preset wise_ft"
            )
        if (self.prompts is None) == (self.preset == "wise_ft"):
            raise ValueError("prompts go with preset wise_ft, which needs them")
        return self


class Finetune(TrainedProtocol):
    """All weights of the image tower, trained on the data set."""

    name = "finetune"
    title = "Finetune"
    settings_model: ClassVar[type[Declaration]] = Settings
    presets = FINETUNE_PRESETS

    def alphas(self, settings: Any) -> list[float]:
        """As the data set says."""
        return list(settings.alphas)
