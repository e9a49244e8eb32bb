"""`maskclip-bench path`: where shipped files are."""

from __future__ import annotations

from typing import Annotated

import typer


def path(
    file: Annotated[
        str,
        typer.Argument(help="A shipped file, e.g. configs/pretrain/demo/clip.yaml; or a folder."),
    ],
) -> None:
    """Print where a shipped file lies, in a checkout or an installed wheel."""
    from maskclip_bench.data_files import config_file

    print(config_file(file))
