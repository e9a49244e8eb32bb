"""The notebook runs from top to bottom in an empty folder, on a demo world of a few scenes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "quickstart.ipynb"

RUN = """
import ast, functools, json, pathlib, sys
from maskclip_bench.data import demo

sizes = demo.DemoSizes(
    pretrain=32, objects_train=5, objects_val=1, objects_val_ood=1, objects_tune=1,
    captions_test=6, captions_val=2, scenes_training=2, scenes_validation=1,
    scenes_validation_ood=1, instances_train=2, instances_val=1, instances_val_ood=1,
)
demo.prepare_demo = functools.partial(demo.prepare_demo, sizes=sizes)

shown = []
scope = {"__name__": "__main__"}
for cell in json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))["cells"]:
    if cell["cell_type"] != "code":
        continue
    source = "".join(cell["source"])

    body = ast.parse(source).body
    exec(compile(ast.Module(body[:-1], []), "cell", "exec"), scope)
    if isinstance(body[-1], ast.Expr):
        value = eval(compile(ast.Expression(body[-1].value), "cell", "eval"), scope)
        shown.append(getattr(value, "_repr_html_", lambda: None)() or repr(value))
    else:
        exec(compile(ast.Module(body[-1:], []), "cell", "exec"), scope)
print(json.dumps(shown))
"""


def test_notebook__runs_in_an_empty_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN, str(NOTEBOOK)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tasks, measured, outcomes, compared, own, frame = json.loads(done.stdout.splitlines()[-1])
    assert "knn/" in tasks
    assert "knn/demo_objects" in measured
    assert "prediction" in outcomes
    assert "colours" in compared
    assert "linear_probe/shapes" in own
    assert "few_shot/demo_objects" in measured
    assert "top1_accuracy" in frame
    assert (tmp_path / "workspace/records/filters/knn__demo_objects.json").is_file()


def test_notebook__is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(not cell.get("outputs") for cell in cells)
    assert all(cell.get("execution_count") is None for cell in cells)
