"""The house: imports go down, doors are few, and looking at a config costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "segdist"

FLOORS = [
    {"__init__", "errors", "config"},
    {"storage", "world", "log", "record", "outbox", "threads", "ops", "hub"},
    {"data", "models", "metric", "mean_iou", "optim", "loss"},
    {
        "strategy",
        "checkpoint",
        "trained",
        "figures",
        "inference",
        "alarm",
        "previews",
        "predictions",
        "targets",
        "exported",
    },
    {"evaluate", "report", "compare", "predict", "export", "health", "probe", "opening", "history", "card"},
    {"train", "api", "push", "push_data"},
    {"launch", "prepare"},
    {"doctor", "stats", "sweep", "submit", "kube"},
    {"cli", "__main__"},
]
PARTS = FLOORS[2]  # pieces that never import one another
SIBLINGS = {
    ("config", "errors"),
    ("record", "storage"),
    ("export", "card"),
    ("hub", "storage"),
    ("hub", "log"),
    ("log", "record"),
    ("log", "outbox"),
    ("strategy", "checkpoint"),
    ("trained", "checkpoint"),
    ("exported", "trained"),
    ("previews", "figures"),
    ("targets", "predictions"),
    ("health", "evaluate"),
    ("opening", "report"),
    ("report", "evaluate"),
    ("opening", "health"),
    ("opening", "probe"),
    ("kube", "sweep"),
    ("__main__", "cli"),
    ("submit", "sweep"),
    ("__init__", "api"),  # lazily: segdist.load
    ("metric", "mean_iou"),  # lazily: MeanIoU imports evaluate
    ("mean_iou", "metric"),
}  # neighbours on one floor that may
DOORS = {
    "ray": {"launch", "sweep", "submit"},
    "boto3": {"storage"},
    "deepspeed": {"strategy"},
    "huggingface_hub": {"hub", "storage"},
    "datasets": {"data", "mean_iou"},
    "evaluate": {"mean_iou"},
    "urllib3": {"storage"},
    "onnx": {"export"},  # lazily: they are an extra
    "onnxruntime": {"export"},
}


def modules() -> list[tuple[str, Path]]:
    """(top name below segdist, file) of every module."""
    return [(p.relative_to(PACKAGE).parts[0].removesuffix(".py"), p) for p in sorted(PACKAGE.rglob("*.py"))]


def imports(path: Path) -> list[str]:
    """Dotted names that a file imports, anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def floor_of(name: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if name in names)


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda v: str(v).removeprefix(str(PACKAGE)))
def test_a_module_imports_only_from_floors_below(name: str, path: Path) -> None:
    for dotted in imports(path):
        parts = dotted.split(".")
        if parts[0] != "segdist" or len(parts) == 1:
            continue
        below = parts[1] if (PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file() else "__init__"
        if below == name or (name, below) in SIBLINGS:
            continue
        assert not (name in PARTS and below in PARTS), f"{path.name} imports its neighbour {below}"
        assert floor_of(below) < floor_of(name), f"{path.name} (floor {floor_of(name)}) imports {below}"


@pytest.mark.parametrize(("library", "doors"), DOORS.items())
def test_a_library_enters_by_its_doors_only(library: str, doors: set[str]) -> None:
    users = {name for name, path in modules() if any(d.split(".")[0] == library for d in imports(path))}
    assert users <= doors


def test_no_job_bears_the_name_of_a_library() -> None:
    assert not {p.stem for p in PACKAGE.parent.glob("jobs/*.py")} & {"evaluate", "datasets", "ray", "torch"}


@pytest.mark.parametrize(
    "statement",
    ["import segdist", "from segdist import config; config.load('configs/demo.yaml')", "import segdist.cli"],
)
def test_this_costs_neither_torch_nor_ray(statement: str) -> None:
    code = f"{statement}; import sys; heavy = {{'torch', 'ray', 'numpy'}} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_looking_at_importers_does_not_load_datasets() -> None:
    code = "import segdist.data.importers, segdist.data.prepare, sys; assert 'datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_the_training_path_never_loads_evaluate() -> None:
    code = (
        "import segdist.train.loop, segdist.launch, segdist.evaluation.scores, sys; "
        "assert 'evaluate' not in sys.modules and 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)
