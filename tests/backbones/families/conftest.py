from __future__ import annotations

from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.config import validate


def declare(**values: object) -> BackboneDeclaration:
    base = {"name": "row", "display_name": "Row", "world": "demo"}
    return validate({**base, **values}, BackboneDeclaration, where="row")
