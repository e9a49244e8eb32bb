"""Documentation that is run does not rot: its commands parse, the files it names exist."""

from __future__ import annotations

import logging
import re
import shlex
import shutil
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from maskclip_bench import data_files
from maskclip_bench.backbones import resolve_backbone
from maskclip_bench.cli.app import app, run
from maskclip_bench.pretrain.recipe import load_recipe
from maskclip_bench.tasks import PROTOCOLS, task_names

ROOT = Path(__file__).resolve().parent.parent

MARKDOWN = sorted([*ROOT.glob("*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("docs/**/*.md")])
DOCUMENTS = [*MARKDOWN, ROOT / "Makefile"]
DECLARATIONS = [
    path
    for folder in ("backbones", "tasks", "configs")
    for suffix in ("yaml", "py")
    for path in sorted((ROOT / folder).rglob(f"*.{suffix}"))
]

# Typer brings its own copy of click in some versions; both have the same classes in this place.
UsageError: type[Exception] = typer.BadParameter.__base__  # type: ignore[assignment]

START = re.compile(
    r"(?:torchrun .*?-m |python3? -m |\$\(BIN\)/|\.venv/bin/)?maskclip[-_]bench(?= |`|$)"
)
"""How a command of ours begins, whatever runs it."""

PLACEHOLDER = re.compile(r"^[A-Z][A-Z_/]*$|^\[|\]$|^\.\.\.|<|>|^path/to/|^my_|:my_|^key=value$")


def fenced_lines(text: str) -> Iterator[str]:
    """Lines of the shell code blocks of a Markdown text."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if language in ("", "bash", "sh", "shell", "console"):
            yield from re.sub(r"\\\n\s*", " ", block).splitlines()


def commands(path: Path) -> list[str]:
    """Every command of ours that a file shows, without what runs it."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        lines = [
            *fenced_lines(text),
            *re.findall(r"`([^`\n]+)`", re.sub(r"(?s)```.*?```", "", text)),
        ]
    elif path.name == "Makefile":
        lines = [line for line in re.sub(r"\\\n\s*", " ", text).splitlines() if "$(BIN)" in line]
        lines = [part.replace("$$table", "demo") for line in lines for part in line.split(";")]
    else:
        comments = [line for line in text.splitlines() if line.startswith("#")]
        # A remark after two spaces, as in `maskclip-bench run --suite all   makes the rows`.
        lines = [re.sub(r"(?<=\S) {2,}.*", "", line.lstrip("# ")) for line in comments]
        lines += re.findall(r"`(maskclip-bench [^`]+)`", "\n".join(comments).replace("\n# ", " "))
    found = []
    for line in lines:
        line = line.strip().removeprefix("$ ")
        match = START.match(line)
        if match:
            found.append(line[match.end() :].split(" # ")[0].split(" | ")[0].split(" >")[0].strip())
    return found


CASES = [
    pytest.param(path, command, id=f"{path.relative_to(ROOT)}: {command}")
    for path in (*DOCUMENTS, *DECLARATIONS)
    for command in dict.fromkeys(commands(path))
]


def parse(arguments: list[str]) -> dict[str, Any]:
    """Parse as the command line does, without executing -> name and values of the last command.

    Raises:
        UsageError: No such command, option or number of arguments.
    """
    command: Any = typer.main.get_command(app)
    parent = None
    name = "maskclip-bench"
    while True:
        # A group's own arguments end at the name of its command.
        context = command.make_context(name, list(arguments), parent=parent)
        if not hasattr(command, "resolve_command"):
            return {"command": name, **context.params}
        rest = [*getattr(context, "_protected_args", []), *context.args]
        if not rest:
            return {"command": name, **context.params}
        name, command, arguments = command.resolve_command(context, rest)
        assert command is not None
        parent = context


def main_parameters() -> list[Any]:
    """Options before the command."""
    command: Any = typer.main.get_command(app)
    return list(command.params)


@pytest.mark.parametrize(("path", "command"), CASES)
def test_command_parses(path: Path, command: str) -> None:
    words = shlex.split(command)
    tokens = [  # the value of an option stays, whatever it is
        word
        for before, word in zip(["", *words], words, strict=False)
        if before.startswith("-") or not PLACEHOLDER.search(word)
    ]
    has_placeholder = len(tokens) != len(shlex.split(command))
    if "--install-completion" in tokens:  # parsing would install it
        assert any("--install-completion" in each.opts for each in main_parameters())
        return
    try:
        values = parse(tokens)
    except typer.Exit:  # --help, --version
        return
    except UsageError as error:
        incomplete = type(error).__name__ in ("MissingParameter", "NoArgsIsHelpError")
        named_only = len(shlex.split(command)) <= 2 and not command.startswith("-")
        if incomplete and (has_placeholder or named_only):  # a command named in running text
            return
        if "does not exist" in str(error):  # a folder of the reader's
            return
        raise
    if values["command"] == "table" and values.get("name"):
        assert values["name"] in data_files.declarations("configs/tables")
    if values["command"] == "pretrain":
        load_recipe_unless_own(values["recipe"], values["overrides"])
    for named in (*names_in(values.get("backbone")), *names_in(values.get("task"))):
        if not PLACEHOLDER.search(named):
            assert_declared(named)
    if values.get("suite") and not PLACEHOLDER.search(values["suite"]):
        assert values["suite"] in data_files.declarations("configs/suites")
    for token in tokens:
        if re.match(r"(configs|tasks|backbones|results)/.*\.(yaml|py|csv)$", token):
            assert (ROOT / token).exists(), f"{path.name} names {token}, which does not exist"


SHORT = ("list", "path", "data list", "table", "--help", "--version")
"""Commands that read files of this repository and print: they are run as they are shown."""


def is_short(command: str) -> bool:
    words = shlex.split(command)
    more = {"-o", "--output", "--records", "-b", "--backbone"} & set(words)  # writes, or measured
    return command.startswith(SHORT) and not more and not any(map(PLACEHOLDER.search, words))


RUN = sorted({case.values[1] for case in CASES if is_short(str(case.values[1]))} - set(SHORT[:4]))


@pytest.mark.parametrize("command", RUN)
def test_short_command_runs(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MASKCLIP_BENCH_WORKSPACE", str(tmp_path))
    assert not run_in_process(command)
    assert capsys.readouterr().out.strip()


def run_in_process(command: str) -> Any:
    """Run a command as it is shown -> its exit code."""
    handlers = logging.getLogger().handlers[:]
    try:
        with pytest.raises(SystemExit) as end, warnings.catch_warnings():
            run(shlex.split(command))
    finally:
        logging.getLogger().handlers[:] = handlers
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return end.value.code


def test_short_commands_are_found() -> None:
    assert {"list tasks", "table imagenet --reference paper", "data list"} <= {*RUN, *SHORT}
    assert len(RUN) >= 8


ROWS = {path.name.partition("__")[0] for path in (ROOT / "results/records").iterdir()}
ON_RECORDS = ("plan", "show", "verify", "compare", "results ls", "results show", "results stats")
"""Commands that read records: they are run as they are shown where all their rows are committed."""
NOT_RUN = ("--cost-figure", "photo.jpg", "CELL|IMAGE")
"""Needs the runs of the rows; needs a photograph and models; is the name of a command."""


def is_on_records(command: str) -> bool:
    words = shlex.split(command)
    rows = {word.partition("/")[0] for word in words} & set(data_files.declarations("backbones"))
    unknown = any(map(PLACEHOLDER.search, words)) or any(word in command for word in NOT_RUN)
    return command.startswith(ON_RECORDS) and len(words) > 1 and not unknown and rows <= ROWS


RUN_ON_RECORDS = sorted({c.values[1] for c in CASES if is_on_records(str(c.values[1]))})


@pytest.mark.parametrize("command", RUN_ON_RECORDS)
def test_command_on_records_runs(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for row in ("clip_vit-demo_demo", "slip_vit-demo_demo"):
        shutil.copytree(ROOT / "results/records" / row, tmp_path / "workspace/records" / row)
    assert not run_in_process(command)
    assert capsys.readouterr().out.strip()


def test_commands_on_records_are_found() -> None:
    assert {"plan --suite all", "show clip_vit-demo_demo/knn/demo_objects"} <= {*RUN_ON_RECORDS}
    assert {command.split()[0] for command in RUN_ON_RECORDS} >= {"plan", "show", "compare"}


def names_in(value: Any) -> list[str]:
    """An option that is given once, or as often as one likes."""
    return [value] if isinstance(value, str) else list(value or ())


def load_recipe_unless_own(name: str, overrides: list[str] | None) -> None:
    """The recipe exists, and takes the overrides shown; `my_...` is the reader's own."""
    if not name.startswith("my_"):
        load_recipe(name, [text for text in overrides or () if not PLACEHOLDER.search(text)])


def assert_declared(name: str) -> None:
    """A row, a model named by a string, or a column whose parts are declared or `*`."""
    if ":" in name:
        resolve_backbone(name)
        return
    protocol, slash, dataset = name.partition("/")
    if not slash:
        known = {*data_files.declarations("backbones"), *data_files.declarations("tasks")}
        assert name in known | set(PROTOCOLS)
        return
    assert dataset == "*" or dataset in data_files.declarations("tasks")
    assert protocol == "*" or dataset == "*" or name in task_names()


def test_commands_are_found() -> None:
    """The search itself works: the README shows the two commands the project is about."""
    shown = commands(ROOT / "README.md")
    assert any(command.startswith("run") for command in shown)
    assert "run --suite all" in commands(ROOT / "Makefile")
    assert "table imagenet --reference paper" in commands(ROOT / "configs/tables/imagenet.yaml")


@pytest.mark.parametrize("arguments", [["rum"], ["run", "--siute", "all"], ["export"]])
def test_wrong_command_does_not_parse(arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        parse(arguments)


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.name)
def test_links_inside_the_repository_lead_somewhere(path: Path) -> None:
    text = re.sub(r"(?s)```.*?```", "", path.read_text(encoding="utf-8"))
    targets = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'src="([^"]+)"', text)]
    for target in targets:
        if not re.match(r"(https?:|mailto:|#)", target):
            assert (path.parent / target.split("#")[0]).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.name)
def test_make_targets_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    mentioned = re.findall(r"(?:^|`|\$ )make ([a-z-]+)", text, re.MULTILINE)
    assert set(mentioned) <= targets


def test_every_make_target_is_explained() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)[0].split()) - {"help"}
    explained = set(re.findall(r"make ([a-z-]+)", "\n".join(re.findall(r"^#.*", text, re.M))))
    assert phony <= explained


def test_version_stands_once_and_agrees() -> None:
    from maskclip_bench import __version__

    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
