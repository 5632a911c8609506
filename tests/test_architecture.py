"""The rules of the code, enforced: what is loaded when, who prints, how files are opened.

Who may import whom is the `layers` contract in pyproject.toml (`lint-imports`); how complex a
function may be is ruff's (C901, PLR0913, PLR0915).
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "sdseg_cli"
FILES = sorted(PACKAGE.rglob("*.py"))
CLI = PACKAGE / "cli"
HEAVY = {"torch", "monai", "scipy", "matplotlib", "SimpleITK", "skimage", "nibabel", "numpy"}
BANNED_NAMES = {"utils", "manager", "helper", "helpers", "first_stage", "c_concat", "gts"}


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _nodes(*kinds: type[ast.AST]) -> Iterator[tuple[Path, ast.AST]]:
    """Every node of these kinds in the package, with its file: one pass serves a rule."""
    for path in FILES:
        yield from ((path, node) for node in ast.walk(_tree(path)) if isinstance(node, kinds))


def test_nothing_lies_directly_in_the_package_but_its_public_face() -> None:
    files = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert files == {"__init__.py", "__main__.py", "py.typed"}


def test_names_say_what_a_thing_is() -> None:
    words = {"id", "arg", "name"}
    for path, node in _nodes(ast.Name, ast.arg, ast.FunctionDef, ast.ClassDef):
        names = {getattr(node, word) for word in words & set(node._fields)}
        assert not (names | {path.stem}) & BANNED_NAMES, path.name


def test_only_the_command_line_prints_or_exits() -> None:
    banned = ("print", "exit", "sys.exit", "sys.stdout.write", "typer.echo", "SystemExit")
    for path, node in _nodes(ast.Call):
        assert isinstance(node, ast.Call)
        assert path.is_relative_to(CLI) or ast.unparse(node.func) not in banned, path.name


def test_only_the_model_package_asks_which_model_it_is() -> None:
    for path, node in _nodes(ast.Call):
        assert isinstance(node, ast.Call)
        if ast.unparse(node.func) == "isinstance" and path.parent != PACKAGE / "model":
            names = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
            assert not names & {"SDSeg", "Baseline", "SliceModel"}, path.name


def test_nothing_loads_loosely_or_swallows_errors() -> None:
    for path, node in _nodes(ast.Call, ast.ExceptHandler):
        if isinstance(node, ast.Call):
            called, words = ast.unparse(node.func), {word.arg: word.value for word in node.keywords}
            if called.endswith("load_state_dict"):
                assert "strict" not in words, path.name
            if called in ("torch.load", "np.load"):
                wanted = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
                name, value = wanted[called]
                assert ast.literal_eval(words[name]) is value, path.name
        if isinstance(node, ast.ExceptHandler) and ast.unparse(node.type or node) == "Exception":
            # A library may raise anything: it must come out as one of ours, never vanish.
            raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            assert raises or path.name in ("app.py", "cohort.py"), path.name


def _loaded(statement: str) -> set[str]:
    """Top-level modules that are loaded after a statement in a fresh interpreter."""
    code = f"{statement}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return {name.split(".")[0] for name in json.loads(run.stdout.splitlines()[-1])}


@pytest.mark.parametrize("statement", ["import sdseg_cli.cli.app", "import sdseg_cli"])
def test_help_and_the_package_itself_load_nothing_heavy(statement: str) -> None:
    assert not _loaded(statement) & HEAVY


def test_the_public_names_are_found_and_others_are_not() -> None:
    names = "Predictor, load_official, read_image, write_mask"
    assert "torch" in _loaded(f"from sdseg_cli import {names}")
    with pytest.raises(ImportError, match="Segmenter"):
        from sdseg_cli import Segmenter  # type: ignore[attr-defined]  # noqa: F401


@pytest.mark.parametrize("name", ["config", "presets"])
def test_settings_need_the_standard_library_only(name: str) -> None:
    loaded = _loaded(f"import sdseg_cli.core.{name}") - _loaded("")
    assert loaded - set(sys.stdlib_module_names) == {"sdseg_cli"}


@pytest.mark.parametrize("module", ["training.train", "demo.bench", "training.distill"])
def test_what_a_gpu_is_wanted_for_loads_on_a_bare_torch_machine(module: str) -> None:
    loaded = _loaded(f"import sdseg_cli.{module}")
    assert not loaded & {"monai", "nibabel", "SimpleITK", "skimage"}


def test_preparing_loads_no_torch() -> None:
    assert "torch" not in _loaded("import sdseg_cli.data.prepare")
