"""Write docs/reference/ from the declarations themselves: fields, defaults, docstrings, commands.

    python scripts/build_reference.py            write the pages
    python scripts/build_reference.py --check    say whether they are as they would be written

Only what this repository registers is described, whatever else is installed.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from maskclip_bench.backbones import backbone_names, load_backbone_declaration
from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.backbones.families import FAMILIES
from maskclip_bench.backbones.families import base as families
from maskclip_bench.cli.app import app
from maskclip_bench.data import readers
from maskclip_bench.data.readers import READERS
from maskclip_bench.pretrain.methods import METHODS
from maskclip_bench.pretrain.recipe import Recipe
from maskclip_bench.pretrain.recipe_summary import recipe_names, recipe_summary
from maskclip_bench.registry import Registry
from maskclip_bench.results.reference import ReferenceRow, load_references
from maskclip_bench.results.table_catalogue import load_table, table_names
from maskclip_bench.results.table_model import TableDeclaration
from maskclip_bench.tasks import dataset_names, load_task_declaration
from maskclip_bench.tasks.declaration import TaskDeclaration
from maskclip_bench.tasks.protocols import PROTOCOLS
from maskclip_bench.tasks.suite import SuiteDeclaration, load_suite, suite_names

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"

WRITTEN = (
    "<!-- Written by `make reference` from the declarations; edit their docstrings instead. -->"
)

Model = type[BaseModel]


# --- types and defaults in words -----------------------------------------------------------------


def type_words(annotation: Any) -> str:
    """A type as a reader of YAML sees it: "int", "a | b" for literals, "list of text"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_words(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_words(part) for part in arguments))
    if origin is Literal:
        return ", ".join(f"`{json.dumps(value)}`".replace('"', "") for value in arguments)
    if origin in (list, tuple):
        parts = [part for part in arguments if part is not Ellipsis]
        if origin is list or (len(arguments) == 2 and arguments[1] is Ellipsis):
            return f"list of {type_words(parts[0])}" if parts else "list"
        return f"{len(parts)} x {type_words(parts[0])}" if len(set(parts)) == 1 else "list"
    if origin is dict:
        return f"mapping of {type_words(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    plain = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    plain |= {type(None): "null", dict: "mapping", Any: "anything"}
    return plain.get(annotation, getattr(annotation, "__name__", str(annotation)))


def default_words(field: FieldInfo) -> str:
    """The default as YAML writes it; "required" where there is none."""
    if field.is_required():
        return "**required**"
    value = field.default
    if value is PydanticUndefined and field.default_factory is not None:
        value = field.default_factory()  # type: ignore[call-arg]
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, tuple):
        value = list(value)
    return f"`{value}`" if isinstance(value, str) and value else f"`{json.dumps(value)}`"


def models_in(annotation: Any) -> Iterator[Model]:
    """All declarations inside a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_in(part)


# --- Markdown ------------------------------------------------------------------------------------


def cell(text: str) -> str:
    """Text in one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    names = list(header)
    lines = [names, ["---"] * len(names), *[[cell(text) for text in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fields_table(model: Model, *, without: Iterable[str] = ()) -> str:
    """Every field of a declaration: name, type, default, docstring."""
    rows = [
        (f"`{name}`", type_words(field.annotation), default_words(field), field.description or "")
        for name, field in model.model_fields.items()
        if name not in without
    ]
    return table(("field", "value", "default", "meaning"), rows) if rows else "No field."


def fields_and_parts(model: Model, seen: set[Model], *, without: Iterable[str] = ()) -> str:
    """The fields, and below them what they hold and the page has not described yet."""
    text = [fields_table(model, without=without)]
    for field in model.model_fields.values():
        for part in models_in(field.annotation):
            if part not in seen:
                text.append(with_parts(part, level=3, seen=seen))
    return "\n\n".join(text)


def with_parts(model: Model, *, level: int = 2, seen: set[Model] | None = None) -> str:
    """A declaration and, below it, every declaration that its fields hold."""
    seen = set() if seen is None else seen
    seen.add(model)
    text = [f"{'#' * level} {model.__name__}", prose(model.__doc__), fields_table(model)]
    for field in model.model_fields.values():
        for part in models_in(field.annotation):
            if part not in seen and not inspect.isabstract(part):
                text.append(with_parts(part, level=level, seen=seen))
    return "\n\n".join(text)


def prose(docstring: str | None) -> str:
    """A docstring as Markdown; the sections of Google's style are left out."""
    text = inspect.cleandoc(docstring or "")
    return re.split(r"\n(?:Args|Raises|Returns|Attributes|Example|Examples):\n", text)[0].strip()


def module_prose(thing: Any) -> str:
    """The docstring of the file that something is defined in."""
    return prose(sys.modules[thing.__module__].__doc__)


def own(registry: Registry[Any]) -> list[str]:
    """Names that this repository registers."""
    return list(registry._builtin)


# --- pages ---------------------------------------------------------------------------------------


def methods_page() -> str:
    """The pretraining methods: their figure in words, and their fields."""
    used: dict[str, list[str]] = {}
    for name in recipe_names():
        used.setdefault(recipe_summary(name).method.name, []).append(name)
    overview = table(
        ("method", "captions", "views", "relative cost", "recipes"),
        [
            (
                f"[`{name}`](#{name})",
                "yes" if METHODS[name].uses_text else "no",
                str(METHODS[name].num_ssl_views),
                f"{METHODS[name].relative_cost:g}",
                str(len(used.get(name, []))),
            )
            for name in own(METHODS)
        ],
    )
    text = [
        "Ways to pretrain (`method:` of a recipe). The relative cost is the rough time of a step "
        "of the demo recipe, CLIP's = 1. What a recipe may set is listed with its default and "
        "where the default comes from.",
        overview,
    ]
    seen: set[Model] = set()
    for name in own(METHODS):
        method = METHODS[name]
        recipes = ", ".join(f"`{recipe}`" for recipe in used.get(name, [])) or "none"
        text += [f"## {name}", module_prose(method), f"Recipes: {recipes}."]
        text.append(fields_and_parts(method.Config, seen))
    return page("Methods", *text)


def protocols_page() -> str:
    """The protocols: settings, data sets, and who published numbers under which preset."""
    published: dict[str, list[ReferenceRow]] = {}
    for row in load_references():
        published.setdefault(row.task.partition("/")[0], []).append(row)
    datasets: dict[str, list[str]] = {}
    for name in dataset_names():
        for protocol in load_task_declaration(name).protocols:
            datasets.setdefault(protocol, []).append(name)
    text = [
        "Ways to evaluate (`protocols:` of a data set). A task is `protocol/data set`. The "
        "published numbers are those of `results/reference`, which `maskclip-bench table NAME "
        "--reference paper` sets beside measured ones."
    ]
    seen: set[Model] = set()
    for name in own(PROTOCOLS):
        protocol = PROTOCOLS[name]
        facts = [f"In tables: {protocol.title}."]
        facts += ["Needs a text tower."] if protocol.needs_text else []
        facts += ["Runs as a job of its own."] if protocol.runs_as_job else []
        metrics = ", ".join(f"`{key}` ({said})" for key, said in protocol.metric_labels.items())
        facts += [f"Metrics: {metrics}."] if metrics else []
        sets = ", ".join(f"`{each}`" for each in datasets.get(name, [])) or "none"
        text += [f"## {name}", module_prose(type(protocol)), " ".join(facts)]
        text += [f"Data sets: {sets}.", fields_and_parts(protocol.settings_model, seen)]
        if name in published:
            text.append(published_table(published[name]))
    return page("Protocols", *text)


def published_table(rows: list[ReferenceRow]) -> str:
    """Published numbers of a protocol, counted by source and preset."""
    groups: dict[tuple[str, str], list[ReferenceRow]] = {}
    for row in rows:
        groups.setdefault((row.table, row.preset), []).append(row)
    lines = [
        (
            where,
            f"`{preset}`",
            str(len(members)),
            ", ".join(sorted({member.task.partition("/")[2] for member in members})),
            "; ".join(sorted({member.source for member in members})),
        )
        for (where, preset), members in sorted(groups.items())
    ]
    return table(("published in", "preset", "numbers", "data sets", "read from"), lines)


def readers_page() -> str:
    """The kinds of reader."""
    text = [prose(readers.__doc__)]
    seen: set[Model] = set()
    for name in own(READERS):
        reader = READERS[name]
        text += [f"## {name}", module_prose(reader)]
        text.append(fields_and_parts(reader, seen, without=["kind"]))
    return page("Readers", *text)


def families_page() -> str:
    """The families of models."""
    text = [
        "Where models come from (`source:` of a row). The first field names the family, and is "
        "required. In a string, `-b PREFIX:...`, it stands after the prefix.",
        table(
            ("family", "prefix", "downloads its weights"),
            [
                (
                    f"[`{name}`](#{name})",
                    f"`{FAMILIES[name].prefix or name}:`",
                    "yes"
                    if type(FAMILIES[name]).downloads_by_itself
                    is not families.Family.downloads_by_itself
                    else "no",
                )
                for name in own(FAMILIES)
            ],
        ),
    ]
    seen: set[Model] = set()
    for name in own(FAMILIES):
        family = FAMILIES[name]
        text += [f"## {name}", module_prose(type(family))]
        text.append(fields_and_parts(family.source_model, seen))
    return page("Families of models", *text)


def recipes_page() -> str:
    """The fields of a recipe, and all recipes."""
    lines = []
    for name in recipe_names():
        summary = recipe_summary(name)
        vision = summary.model.vision.timm_model
        lines.append(
            (f"`{name}`", f"`{summary.method.name}`", f"`{vision}`", summary.length,
             summary.description)
        )  # fmt: skip
    return page(
        "Recipes",
        "`maskclip-bench pretrain RECIPE key=value ...`: any field below may be given as "
        "`optimizer.lr=1e-3`. The fields of `method` are those of the [method](methods.md).",
        with_parts(Recipe),
        "## All recipes",
        table(("recipe", "method", "vision", "pairs", "what it is"), lines),
    )


def rows_page() -> str:
    """The fields of a row, and all rows."""
    lines = []
    for name in backbone_names():
        row = load_backbone_declaration(name)
        lines.append((f"`{name}`", row.display_name, row.pretrain_data, row.family.name, row.world))
    return page(
        "Rows",
        "A compared model, `backbones/NAME.yaml`. The fields of `source` are those of its "
        "[family](families.md).",
        with_parts(BackboneDeclaration),
        "## All rows",
        table(("row", "name in tables", "pretrained on", "family", "world"), lines),
    )


def columns_page() -> str:
    """The fields of a data set's file, and all data sets."""
    lines = []
    for name in dataset_names():
        task = load_task_declaration(name)
        protocols = ", ".join(f"`{each}`" for each in task.protocols)
        lines.append(
            (f"`{name}`", task.display_name, protocols, f"`{task.reader.kind}`", task.obtain)
        )
    return page(
        "Data sets",
        "A data set and the protocols that measure on it, `tasks/NAME.yaml`. The fields of "
        "`reader` are those of its [kind](readers.md), the settings below `protocols` those of the "
        "[protocol](protocols.md).",
        with_parts(TaskDeclaration),
        "## All data sets",
        table(("data set", "name in tables", "protocols", "reader", "how to get it"), lines),
    )


def suites_page() -> str:
    """Suites and tables."""
    suites = [(f"`{name}`", load_suite(name).description) for name in suite_names()]
    tables = [
        (f"`{name}`", load_table(name).world, load_table(name).title) for name in table_names()
    ]
    return page(
        "Suites and tables",
        "A suite (`configs/suites/NAME.yaml`) says what `run --suite NAME` measures, a table "
        "(`configs/tables/NAME.yaml`) what `table NAME` shows.",
        with_parts(SuiteDeclaration),
        table(("suite", "what it is"), suites),
        with_parts(TableDeclaration),
        table(("table", "world", "title"), tables),
    )


def commands_page() -> str:
    """Every command with its options."""
    command: Any = typer.main.get_command(app)
    text = [prose(command.help), prose(command.epilog)]
    for name, each in walk_commands(command, "maskclip-bench"):
        text += [f"## {name}", command_help(each.help)]
        rows = [option_row(parameter) for parameter in each.params if parameter.name != "help"]
        if rows:
            text.append(table(("argument or option", "default", "meaning"), rows))
    return page("Commands", *text)


def walk_commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command that does something, with its whole name."""
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from walk_commands(command, f"{name} {word}")
        elif not command.hidden:
            yield f"{name} {word}", command


def command_help(text: str | None) -> str:
    """The help of a command; its examples, indented lines, become one block."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text or ""))
    shown: list[str] = []
    for paragraph in paragraphs:
        if not paragraph.startswith("    "):
            shown.append(paragraph)
        elif shown and shown[-1].startswith("```bash"):
            shown[-1] = f"{shown[-1].removesuffix('```')}{paragraph.strip()}\n```"
        else:
            shown.append(f"```bash\n{paragraph.strip()}\n```")
    return "\n\n".join(shown)


def option_row(parameter: Any) -> tuple[str, str, str]:
    """One argument or option."""
    is_option = parameter.param_type_name == "option"
    names = ", ".join(f"`{name}`" for name in parameter.opts)
    if not is_option:
        names = f"`{(parameter.metavar or parameter.name).upper()}`"
    shown = parameter.show_default if isinstance(parameter.show_default, str) else None
    default = shown or (
        "" if parameter.default in (None, False, (), []) else str(parameter.default)
    )
    if parameter.required:
        default = "**required**"
    return (
        names,
        f"`{default}`" if default and not parameter.required else default,
        (parameter.help or ""),
    )


PAGES: Mapping[str, Callable[[], str]] = {
    "commands": commands_page,
    "recipes": recipes_page,
    "methods": methods_page,
    "rows": rows_page,
    "families": families_page,
    "datasets": columns_page,
    "protocols": protocols_page,
    "readers": readers_page,
    "suites": suites_page,
}


def page(title: str, *parts: str) -> str:
    """A page of parts, with its heading."""
    return "\n\n".join([WRITTEN, f"# {title}", *(part for part in parts if part)]) + "\n"


def index_page(pages: Mapping[str, str]) -> str:
    """What there is, with the first sentence of each page."""
    lines = []
    for name, text in pages.items():
        title = re.findall(r"^# (.*)$", text, re.M)[0]
        lines.append(
            (f"[{title}]({name}.md)", text.split("\n\n")[2].split(". ")[0].rstrip(".") + ".")
        )
    return page("Reference", "Every field, option and name, from the declarations themselves.",
                table(("page", "what it holds"), lines))  # fmt: skip


def build() -> dict[str, str]:
    """File name -> text of every page."""
    pages = {name: make() for name, make in PAGES.items()}
    return {"README.md": index_page(pages), **{f"{name}.md": text for name, text in pages.items()}}


def differing(folder: Path) -> list[str]:
    """Names of pages in `folder` that are not as they would be written, or should not be there."""
    pages = build()
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    return sorted(name for name in {*pages, *there} if pages.get(name) != there.get(name))


def main(arguments: list[str]) -> int:
    """Write the pages, or with --check name those that differ."""
    if arguments == ["--check"]:
        names = differing(FOLDER)
        if names:
            print(f"docs/reference is out of date ({', '.join(names)}): make reference")
        return 1 if names else 0
    if arguments:
        print(__doc__)
        return 2
    FOLDER.mkdir(exist_ok=True)
    pages = build()
    for path in FOLDER.glob("*.md"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
