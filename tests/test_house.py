"""The house keeps its shape: imports point one way, and the wheel holds exactly the tree."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("data", "teachers", "students", "tasks", "distill", "evaluate", "export")
MAY_IMPORT = {
    "data": {"data"},
    "teachers": {"data", "teachers"},
    "students": {"data", "students"},
    "tasks": {"data", "tasks"},
    "distill": {"data", "teachers", "students", "tasks", "distill"},
    "evaluate": {"data", "teachers", "students", "tasks", "evaluate"},
    "export": set(FOLDERS),
}
OPTIONAL = (
    "av",
    "diffusers",
    "faster_coco_eval",
    "lpips",
    "py_sod_metrics",
    "ray",
    "segment_anything",
    "segmentation_models_pytorch",
    "skimage",
    "sklearn",
    "tensorboard",
    "tensorrt",
    "thop",
    "timm",
    "transformers",
)
FORBIDDEN_NAMES = {"utils", "core", "common", "helpers"}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported_folders(path: Path) -> set[str]:
    """Folders of duskfuse that a module imports; relative imports are for the device runtime, which ships alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            ships_alone = path.parent == ROOT / "export" / "runtime"
            assert node.level <= int(ships_alone), f"{path} has a relative import"
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("duskfuse.")}
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_point_one_way(folder: str) -> None:
    assert modules(folder), f"{folder} holds no module"
    for path in modules(folder):
        wrong = imported_folders(path) - MAY_IMPORT[folder]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_no_module_has_a_name_that_says_nothing() -> None:
    names = {path.stem for folder in FOLDERS for path in modules(folder)}
    assert not names & FORBIDDEN_NAMES


def test_links_lead_to_the_folders() -> None:
    for folder in FOLDERS:
        link = ROOT / "src" / "duskfuse" / folder
        assert link.is_symlink()
        assert not Path(link.readlink()).is_absolute()
        assert link.resolve() == ROOT / folder


def test_the_device_runtime_imports_no_torch_and_keeps_python_3_8_syntax() -> None:
    for path in modules("export/runtime"):
        tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))
        imported = {
            name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        }
        assert "torch" not in imported, f"{path.name} imports torch"


def test_no_module_names_a_device_number_or_a_folder_of_some_machine() -> None:
    """Devices are given, never taken: no ``.cuda()``, no ``cuda:0``, no absolute path (SAGE's code had all three)."""
    for path in (path for folder in FOLDERS for path in modules(folder)):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr != "cuda", f"{path.relative_to(ROOT)}:{node.lineno} moves a tensor by .cuda()"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                bound = re.match(r"cuda:\d|/(home|root|mnt|media|data|Users)/|[A-Z]:\\", node.value)
                assert bound is None, f"{path.relative_to(ROOT)}:{node.lineno} names {node.value!r}"


def test_every_module_imports_without_optional_packages_and_without_a_network() -> None:
    """What an extra brings, and SAM, is imported where it is used; nothing is fetched at import."""
    code = """
import importlib, pkgutil, socket, sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OPTIONAL:
            raise ModuleNotFoundError(f"{name} is optional", name=name)

def refuse(*_):
    raise AssertionError("a connection at import")

sys.meta_path.insert(0, Refused())
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = refuse
import duskfuse
names = [module.name for module in pkgutil.walk_packages(duskfuse.__path__, "duskfuse.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(names))
"""
    optional = set(OPTIONAL)
    result = subprocess.run(
        [sys.executable, "-c", f"OPTIONAL = {optional}\n{code}"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 100


def test_every_dependency_has_a_lowest_version_and_this_machine_has_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for line in project["dependencies"]:
        requirement = Requirement(line)
        assert any(bound.operator == ">=" for bound in requirement.specifier), f"{line} has no lowest version"
        assert requirement.specifier.contains(version(requirement.name)), f"{line}: {version(requirement.name)} is here"


@pytest.mark.parametrize("arguments", [["--help"], ["distill", "--help"], ["--version"]])
def test_help_does_not_wait_for_torch(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from duskfuse.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'cv2', 'onnxruntime', 'pyarrow', 'kornia'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_the_wheel_holds_the_tree_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a copy, so that an old build folder cannot hide a missing module
    kept_out = shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info", "__pycache__", ".*_cache", "runs", "demo")
    shutil.copytree(ROOT, source, symlinks=True, ignore=kept_out)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)],
        capture_output=True,
        text=True,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {f"duskfuse/{p.relative_to(ROOT)}" for folder in FOLDERS for p in modules(folder)}
    expected |= {f"duskfuse/{path.name}" for path in (ROOT / "src" / "duskfuse").glob("*.py")} | {"duskfuse/py.typed"}
    expected |= {f"duskfuse/cli/{path.name}" for path in (ROOT / "src" / "duskfuse" / "cli").glob("*.py")}
    expected |= {f"duskfuse/{p.relative_to(ROOT)}" for p in (ROOT / "distill" / "recipes").glob("*.yaml")}
    expected |= {f"duskfuse/data/rig_calibration/click_page.{kind}" for kind in ("css", "html", "js")}
    expected |= {f"duskfuse/evaluate/report_page/{name}" for name in ("browser.html", "page.css", "page.js")}
    expected |= {"duskfuse/export/LICENSE", "duskfuse/export/tensorrt_operators.json"}
    expected |= {f"duskfuse/{p.relative_to(ROOT)}" for p in (ROOT / "students" / "weights").glob("*") if p.is_file()}
    assert held == expected
