"""The command line: parses and wires; everything it starts lives in the layers below."""

from __future__ import annotations

from maskclip_bench.cli.stopping import stopping_at_once


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script; `arguments` default to the command line's."""
    with stopping_at_once():
        from maskclip_bench.cli.app import run

    run(arguments)
