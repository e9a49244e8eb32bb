"""`maskclip-bench mm`: mmseg's and mmdet's own scripts, on our backbones, with no compiled op."""

from __future__ import annotations

from typing import Annotated

import typer


def mm(
    context: typer.Context,
    toolbox: Annotated[str, typer.Argument(help="mmseg or mmdet.")],
    tool: Annotated[
        str,
        typer.Argument(
            help="train, test, or any other script of the toolbox by its name: analyze_logs, "
            "browse_dataset, get_flops...; or config, which writes a config for a row."
        ),
    ],
    config: Annotated[
        str | None,
        typer.Argument(
            help="An OpenMMLab config: a path, or configs/mmseg/NAME.py. For other scripts their "
            "first argument."
        ),
    ] = None,
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
    then: maskclip-bench mm mmseg test configs/mmseg/CONFIG.py out/iter_160000.pth
    and: maskclip-bench mm mmseg analyze_logs out/DATE/vis_data/scalars.json --keys mIoU

    A config for any row: maskclip-bench mm mmseg config dinov2_vit-b-14 --head upernet
    --data ade20k -o upernet.py (--head linear, frozen-upernet, ibot-linear; mmdet: mask-rcnn,
    vitdet-mask-rcnn, cascade-mask-rcnn, retinanet; --data voc2012, pascal_context, coco_stuff,
    cityscapes; mmdet: coco, lvis)
    """
    from pathlib import Path

    if tool == "config":
        _write_config(toolbox, [*([] if config is None else [config]), *context.args])
        return
    from maskclip_bench.backbones.openmmlab.toolbox_scripts import ACTIONS, launch
    from maskclip_bench.data_files import config_file

    def place(word: str) -> str:
        shipped = word.startswith("configs/") and word.endswith(".py")
        if Path(word).is_file() or not (shipped or tool in ACTIONS):
            return word
        return str(config_file(word))

    if config is None:
        launch(toolbox, tool, None, context.args, allow_pickle=allow_pickle or ())
    else:
        launch(toolbox, tool, place(config), context.args, allow_pickle=allow_pickle or ())


def _write_config(toolbox: str, words: list[str]) -> None:
    """`mm TOOLBOX config ROW --head HEAD --data DATA -o FILE`."""
    import argparse
    from pathlib import Path

    from maskclip_bench.backbones.declaration import load_backbone_declaration
    from maskclip_bench.backbones.openmmlab.row_configs import config_name, write_row_config
    from maskclip_bench.cli.options import console
    from maskclip_bench.errors import ConfigError

    parser = argparse.ArgumentParser(
        prog=f"maskclip-bench mm {toolbox} config", exit_on_error=False
    )
    detector = toolbox == "mmdet"
    parser.add_argument("row", help="name of a backbone, or the path of its file")
    parser.add_argument("--head", default="mask-rcnn" if detector else "upernet")
    parser.add_argument("--data", default="coco" if detector else "ade20k")
    parser.add_argument("-o", "--output", type=Path)
    try:
        given = parser.parse_args(words)
    except (argparse.ArgumentError, SystemExit) as error:
        raise ConfigError(f"{parser.format_usage().strip()} ({error})") from error
    row = load_backbone_declaration(given.row)
    output = given.output or Path(config_name(toolbox, given.head, given.data, row.name))
    path = write_row_config(toolbox, row, given.head, given.data, output, source=given.row)
    console().print(f"Wrote {path}")
