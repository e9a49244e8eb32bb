"""`maskclip-bench embed`: features of images or texts as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskclip_bench.cli.data import bars
from maskclip_bench.cli.options import DeviceOption, WorkspaceOption, console
from maskclip_bench.cli.run_how import PRECISIONS
from maskclip_bench.errors import ConfigError


def embed(
    model: Annotated[
        str, typer.Argument(help="A row, timm:NAME, open_clip:ARCH/TAG, hf:ORG/NAME or a folder.")
    ],
    data: Annotated[
        str | None, typer.Argument(help="A data set, hf:ORG/NAME, or a folder of images.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .parquet or .safetensors file.")
    ] = Path("features.parquet"),
    kind: Annotated[
        str | None,
        typer.Option("--kind", help="pooled, joint, class, patch or text.", show_default="pooled"),
    ] = None,
    layer: Annotated[
        int, typer.Option("--layer", help="Block of class and patch tokens; -1 is the last.")
    ] = -1,
    split: Annotated[str, typer.Option("--split", help="train, validation or test.")] = "test",
    texts: Annotated[
        Path | None, typer.Option("--texts", help="A file with one text a line, in place of data.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most so many images.")
    ] = None,
    precision: Annotated[str, typer.Option("--precision", help="fp32 or bf16.")] = "fp32",
    workspace: WorkspaceOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Write the features of images or texts to a file, without measuring anything.

    For example:

        maskclip-bench embed openai_vit-b-16 cifar10 -o cifar10.parquet

        maskclip-bench embed mae_vit-b-16_in1k ~/birds --kind patch --layer 8 -o birds.safetensors

        maskclip-bench embed openai_vit-b-16 --texts captions.txt -o captions.parquet
    """
    from maskclip_bench.api_embed import embed as make
    from maskclip_bench.data.text_files import read_lines

    if precision not in PRECISIONS:
        raise ConfigError(f"--precision {precision!r}: choose fp32 or bf16.")
    with bars() as report:
        shape = make(
            model,
            data,
            texts=None if texts is None else read_lines(texts),
            split=split,
            kind=kind,  # type: ignore[arg-type]  # checked there
            layer=layer,
            limit=limit,
            output=output,
            workspace=workspace,
            device=device,
            precision=PRECISIONS[precision],
            progress=report,
        )
    console().print(f"Wrote {' x '.join(map(str, shape))} to {output}", markup=False)
