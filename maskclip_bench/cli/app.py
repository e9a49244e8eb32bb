"""`maskclip-bench`: pretrain, evaluate, tabulate.

Each command lives in its own module; this one joins them, turns our errors into one message and
an exit code, and says on Ctrl-C that the same command goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import warnings
from types import FrameType
from typing import Annotated, Any, cast

import typer
from rich.logging import RichHandler

from maskclip_bench import __version__
from maskclip_bench.cli.compare import compare
from maskclip_bench.cli.data import data_app
from maskclip_bench.cli.data_check import add_data_commands
from maskclip_bench.cli.embed import embed
from maskclip_bench.cli.inspect import path
from maskclip_bench.cli.listing import list_app
from maskclip_bench.cli.mm import mm
from maskclip_bench.cli.options import console, forget_console
from maskclip_bench.cli.pretrain import export, pretrain
from maskclip_bench.cli.report import report, show
from maskclip_bench.cli.results import results_app
from maskclip_bench.cli.run import plan, run_suite
from maskclip_bench.cli.stopping import STOPPED
from maskclip_bench.cli.study import study_app
from maskclip_bench.cli.table import table
from maskclip_bench.cli.verify import verify
from maskclip_bench.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_STORAGE,
    MaskCLIPBenchError,
)
from maskclip_bench.escaping import markup
from maskclip_bench.jobs import end_with_parent

USAGE_ERROR = cast("type[Exception]", typer.BadParameter.__mro__[2])
"""click's `ClickException`; recent versions of typer bring a click of their own."""

EPILOG = """
Exit codes: 0 all done; 1 a cell failed or a run stopped with an error; 2 the command is wrong
(unknown name, key or value); 3 data is missing or broken, a declaration of the suite is broken, or
what a run was asked for by name cannot be measured here; 4 the disk refused (space, permission);
5 an optional dependency is missing, and nothing else went wrong; 130 interrupted, and the same
command goes on.
"""

app = typer.Typer(
    name="maskclip-bench",
    help=(
        "MaskCLIP (Dong et al., CVPR 2023) and its baselines under one trainer, and a transfer "
        "benchmark for any image or image-text encoder. Start with: maskclip-bench run --suite all"
    ),
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"maskclip-bench {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Options before the command."""
    configure_logging(verbose=verbose)


app.command("run")(run_suite)
app.command("plan")(plan)
app.command("pretrain")(pretrain)
app.command("export")(export)
app.add_typer(list_app, name="list")
add_data_commands(data_app)
app.add_typer(data_app, name="data")
app.command("table")(table)
app.command("compare")(compare)
app.add_typer(results_app, name="results")
app.add_typer(study_app, name="study")
app.command("report")(report)
app.command("show")(show)
app.command("embed")(embed)
app.command("verify")(verify)
app.command("path")(path)
app.command(
    "mm",
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": ["--help"],
    },
)(mm)


def configure_logging(*, verbose: bool) -> None:
    """Log to stderr: warnings, and with `verbose` everything of ours."""
    handler = RichHandler(
        console=console(stderr=True), show_path=False, show_time=verbose, markup=False
    )
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("maskclip_bench").setLevel(logging.DEBUG if verbose else logging.INFO)
    if not verbose:
        warnings.simplefilter("ignore")


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _discard_output() -> None:
    """Send what is left in stdout's buffer nowhere, so that closing it at exit raises nothing."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(arguments: list[str] | None = None) -> None:
    """Parse and execute; every error of ours ends as one message and its exit code."""
    forget_console()
    errors = console(stderr=True)
    end_with_parent()
    signal.signal(signal.SIGTERM, _terminate)
    hang_up = getattr(signal, "SIGHUP", None)
    if hang_up is not None and signal.getsignal(hang_up) == signal.SIG_DFL:  # nohup ignores it
        signal.signal(hang_up, _terminate)
    try:
        code: Any = app(args=arguments, standalone_mode=False)
        sys.stdout.flush()
    except typer.Abort:
        code = EXIT_INTERRUPTED
    except USAGE_ERROR as error:
        error.show()  # type: ignore[attr-defined]
        code = error.exit_code  # type: ignore[attr-defined]
    except MaskCLIPBenchError as error:
        errors.print(f"[bold red]error:[/] {markup(error)}", soft_wrap=True)
        code = error.exit_code
    except BrokenPipeError:  # `| head` has read enough
        code = EXIT_FAILED
        _discard_output()
    except OSError as error:
        where = error.filename or "the output"
        text = markup(f"{error.strerror or error}: {where}")
        errors.print(f"[bold red]error:[/] {text}", soft_wrap=True)
        code = EXIT_STORAGE
        _discard_output()
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    if code == EXIT_INTERRUPTED:
        errors.print(f"[yellow]{STOPPED}[/]")
    sys.exit(code if isinstance(code, int) else 0)
