"""The command line: parses and wires; everything it starts lives in the layers below."""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script."""
    from maskclip_bench.cli.app import run

    run()
