"""What installs the project says what to type next, and its steps are those of docs/install.md."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INSTALL = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")


def dry_run(target: str) -> str:
    result = subprocess.run(
        # As a user types it: a make that runs these tests would add its own lines and flags.
        ["make", "--no-print-directory", "--dry-run", "--always-make", target],
        cwd=ROOT,
        env={name: text for name, text in os.environ.items() if not name.startswith("MAKE")},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout


@pytest.mark.parametrize("target", ["install", "demo"])
def test_make__ends_with_the_lines_to_type_next(target: str) -> None:
    lines = [line.strip() for line in dry_run(target).splitlines()]
    assert any(line.startswith('echo "  . .venv/bin/activate"') for line in lines[-4:])
    assert lines[-1].startswith('echo "  maskclip-bench ')


def test_make_demo__says_it_once() -> None:
    assert dry_run("demo").count("bin/activate") == 1


def test_dockerfile__its_steps_are_those_of_the_document() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    given = dict(re.findall(r"^ARG (\w+)=(.*)$", text, re.M))
    for name, value in given.items():
        text = text.replace(f'"${name}"', value)
    steps = re.findall(r"^RUN pip install --no-cache-dir (.*)$", text, re.M)
    assert steps
    for step in steps:
        assert f"pip install {step}\n" in INSTALL
    known = {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "ENV", "ENTRYPOINT", "CMD"}
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert {line.split()[0] for line in lines} <= known
    assert 'ENTRYPOINT ["maskclip-bench"]' in text


def test_dockerfile__its_command_is_the_documents() -> None:
    def command(text: str) -> str:
        found = re.search(r"docker run .*?(?= run --suite)", text, re.S)
        assert found is not None
        return " ".join(found[0].replace("\n#", "\n").replace("\\\n", " ").split())

    assert command((ROOT / "Dockerfile").read_text(encoding="utf-8")) == command(INSTALL)


def test_extras__all_are_in_the_document() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    declared = set(re.findall(r"^(\w+) = \[", section, re.M))
    shown = set(re.findall(r"^\| `(\w+)` \|", INSTALL, re.M))
    assert shown == declared
