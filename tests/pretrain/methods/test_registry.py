"""The list of methods."""

from __future__ import annotations

import subprocess
import sys

from maskclip_bench.pretrain.methods import METHODS
from maskclip_bench.pretrain.methods.base import Method
from maskclip_bench.pretrain.recipe import MethodSection


def test_methods__listing_imports_none_of_them() -> None:
    code = (
        "import sys; from maskclip_bench.pretrain.methods import METHODS; "
        "assert 'maskclip' in METHODS and list(METHODS); "
        "print([m for m in ('torch', 'timm', 'open_clip') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_methods__each_says_what_a_step_needs() -> None:
    for name in METHODS:
        method = METHODS[name]
        assert issubclass(method, Method), name
        assert method.relative_cost > 0
        assert isinstance(method.uses_text, bool)


def test_methods__the_cost_of_the_defaults_is_the_methods_own() -> None:
    for name in METHODS:
        method = METHODS[name]
        if not any(field.is_required() for field in method.Config.model_fields.values()):
            assert method.cost_of(method.Config()) == method.relative_cost, name


def test_methods__a_part_that_is_left_out_costs_nothing() -> None:
    def cost(**fields: object) -> float:
        return MethodSection(name="maskclip", **fields).relative_cost

    whole, no_words = cost(), cost(mlm_weight=0.0)
    no_images, neither = cost(distillation_weight=0.0), cost(mlm_weight=0.0, distillation_weight=0)
    assert whole > no_words > cost(mlm_weight=0.0, target="pixels") > neither == 1.0
    assert whole > no_images > neither
    assert MethodSection(name="slip").relative_cost == METHODS["slip"].relative_cost
