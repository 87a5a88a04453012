"""The layout of the package: imports go down, each package has one door, and reading a config costs nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import forks
import pytest

PACKAGE = Path(__file__).parents[1] / "segdist"

# From the bottom to the top. A module imports only from its own package and from those before it.
ORDER = [
    "errors", "threads", "config", "ops", "storage", "console", "distributed", "data", "models", "runs", "evaluation",
    "step", "train", "publish", "predict", "metric", "api", "launch", "doctor", "sweep", "cluster", "cli",
]  # fmt: skip
APART = {frozenset({"data", "models"}), frozenset({"evaluation", "step"})}  # never import each other
DOORS = {
    "ray": {"launch", "sweep", "cluster"},
    "boto3": {"storage"},
    "deepspeed": {"step"},
    "huggingface_hub": {"publish", "storage"},
    "datasets": {"data", "evaluation"},
    "evaluate": {"evaluation"},
    "urllib3": {"storage"},
    "matplotlib": {"evaluation", "sweep"},
    "onnx": {"publish"},
    "onnxruntime": {"publish"},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def package_of(path: Path) -> str:
    """Top name below segdist of a file; "" of segdist/__init__.py and __main__.py, which may import anything."""
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if name.startswith("__") else name


def imports(path: Path) -> list[tuple[str, str]]:
    """(module, name) of everything that a file imports, anywhere in it; the name is empty for `import module`."""
    found: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [(str(node.module), alias.name) for alias in node.names]
    return found


def offers(package: Path) -> set[str]:
    """`__all__` of a package's __init__."""
    for node in ast.parse((package / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def ours(path: Path) -> list[list[str]]:
    """Dotted names below segdist that a file imports from packages other than its own."""
    names = [
        [*module.split(".")[1:], *filter(None, [name])]
        for module, name in imports(path)
        if module.split(".")[0] == "segdist"
    ]
    return [parts for parts in names if parts and not parts[0].startswith("__") and parts[0] != package_of(path)]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_packages_below_and_by_their_doors(path: Path) -> None:
    own = package_of(path)
    for parts in ours(path):
        dotted, package = ".".join(parts), PACKAGE / parts[0]
        assert frozenset({own, parts[0]}) not in APART, f"{path} imports {dotted}"
        assert not own or ORDER.index(parts[0]) < ORDER.index(own), f"{path} imports {dotted}, which is above it"
        assert not package.is_dir() or len(parts) == 1 or parts[1] in offers(package), (
            f"{dotted} is not offered by {package}"
        )


def test_every_package_says_in_one_sentence_what_it_is_for_and_offers_what_exists() -> None:
    for init in PACKAGE.rglob("__init__.py"):
        tree = ast.parse(init.read_text(encoding="utf-8"))
        assert (ast.get_docstring(tree) or "").split("\n")[0].endswith("."), init
        if init.parent != PACKAGE:
            names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | {n for _, n in imports(init)}
            files = {path.stem for path in init.parent.iterdir()}
            functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
            assert offers(init.parent) <= names | files | functions, init


@pytest.mark.parametrize(("library", "doors"), DOORS.items())
def test_a_library_enters_by_its_doors_only(library: str, doors: set[str]) -> None:
    users = {
        package_of(path) for path in modules() if any(module.split(".")[0] == library for module, _ in imports(path))
    }
    assert users <= doors


def test_no_job_has_the_name_of_a_library() -> None:
    assert not {p.stem for p in PACKAGE.parent.glob("jobs/*.py")} & {"evaluate", "datasets", "ray", "torch"}


@pytest.mark.parametrize(
    "statement",
    ["import segdist", "from segdist import config; config.load('configs/demo.yaml')", "import segdist.cli"],
)
def test_this_costs_neither_torch_nor_ray(statement: str) -> None:
    code = f"{statement}; import sys; heavy = {{'torch', 'ray', 'numpy'}} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_the_tests_of_a_gpu_can_be_imported_where_only_training_is_installed() -> None:
    """A machine with a GPU, lent for minutes, has torch and transformers, and gets pydantic and simplejpeg with our code."""
    code = (
        "import sys; sys.path[:0] = ['tests', 'demo']; "
        "lacks = 'boto3 datasets deepspeed evaluate moto optuna pycocotools ray segmentation_models_pytorch'.split(); "
        "sys.modules.update(dict.fromkeys(lacks)); "
        "import conftest, forks, leaks, long_tests, spending, test_gpu"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_looking_at_importers_does_not_load_datasets() -> None:
    code = "import segdist.data.importers, segdist.data.prepare, sys; assert 'datasets' not in sys.modules"
    forks.run(["-c", code], check=True, bare=True)


def test_the_training_path_never_loads_evaluate() -> None:
    code = "import segdist.train, segdist.launch, sys; assert not {'evaluate', 'ray'} & set(sys.modules)"
    forks.run(["-c", code], check=True, bare=True)


def test_no_message_of_an_error_ends_with_a_period() -> None:
    """So that another message can quote it in parentheses, or go on after it."""
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args or not ast.unparse(node.func).endswith("Error"):
                continue
            text = node.args[0].values[-1] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
            if isinstance(text, ast.Constant):
                assert not re.search(r"(?<!\.\.)\.$", str(text.value).rstrip()), f"{path}:{node.lineno}: {text.value}"
