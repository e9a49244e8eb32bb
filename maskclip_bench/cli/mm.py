"""`maskclip-bench mm`: mmseg's and mmdet's own scripts, on our backbones, with no compiled op."""

from __future__ import annotations

from typing import Annotated

import typer


def mm(
    context: typer.Context,
    toolbox: Annotated[str, typer.Argument(help="mmseg or mmdet.")],
    action: Annotated[str, typer.Argument(help="train or test.")],
    config: Annotated[
        str, typer.Argument(help="An OpenMMLab config: a path, or configs/mmseg/NAME.py.")
    ],
    allow_pickle: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="A checkpoint that may run the code it holds when it is loaded. Files that hold "
            "more than tensors and numbers are refused without it. May be repeated.",
        ),
    ] = None,
) -> None:
    """Run mmseg's or mmdet's own script on a config; more arguments go to that script.

    For example: maskclip-bench mm mmseg train configs/mmseg/CONFIG.py --work-dir out --resume,
    and then: maskclip-bench mm mmseg test configs/mmseg/CONFIG.py out/iter_160000.pth
    """
    from pathlib import Path

    from maskclip_bench.backbones.openmmlab.toolbox_scripts import launch
    from maskclip_bench.data_files import config_file

    place = Path(config) if Path(config).is_file() else config_file(config)
    launch(toolbox, action, str(place), context.args, allow_pickle=allow_pickle or ())
