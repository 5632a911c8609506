"""The rules of the code, enforced: what is loaded when, who prints, how files are opened.

Who may import whom is the `layers` contract in pyproject.toml (`lint-imports`); how complex a
function may be is ruff's (C901, PLR0913, PLR0915).
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, TypeAlias

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "sdseg_cli"
CLI = PACKAGE / "cli"
HEAVY = {"torch", "monai", "scipy", "matplotlib", "SimpleITK", "skimage", "nibabel", "numpy"}
Nodes: TypeAlias = dict[type[ast.AST], list[tuple[Path, Any]]]
Calls: TypeAlias = list[tuple[Path, str, ast.Call]]
BANNED_NAMES = {"utils", "manager", "helper", "helpers", "first_stage", "c_concat", "gts"}


@pytest.fixture(scope="module")
def nodes() -> Nodes:
    """Kind of node -> all nodes of this kind in the package, each with its file."""
    found = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found[type(node)].append((path, node))
    return found


@pytest.fixture(scope="module")
def calls(nodes: Nodes) -> Calls:
    """Each call in the package: its file, the name of the function, the node."""
    return [(path, _dotted(node.func), node) for path, node in nodes[ast.Call]]


def _dotted(function: ast.expr) -> str:
    """`torch.load` of such an expression; of any other the attributes at its end."""
    if isinstance(function, ast.Attribute):
        return f"{_dotted(function.value)}.{function.attr}"
    return function.id if isinstance(function, ast.Name) else ""


def test_nothing_lies_directly_in_the_package_but_its_public_face() -> None:
    files = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert files == {"__init__.py", "__main__.py", "py.typed"}


def test_names_say_what_a_thing_is(nodes: Nodes) -> None:
    words = {ast.Name: "id", ast.arg: "arg", ast.FunctionDef: "name", ast.ClassDef: "name"}
    for kind, word in words.items():
        for path, node in nodes[kind]:
            assert not {getattr(node, word), path.stem} & BANNED_NAMES, path.name


def test_only_the_command_line_prints_or_exits(calls: Calls) -> None:
    banned = ("print", "exit", "sys.exit", "sys.stdout.write", "typer.echo", "SystemExit")
    for path, called, _ in calls:
        assert path.is_relative_to(CLI) or called not in banned, path.name


def test_one_function_alone_makes_text_for_the_terminal(calls: Calls) -> None:
    assert [path.name for path, called, _ in calls if called == "Text"] == ["console.py"]


def test_only_the_model_package_asks_which_model_it_is(calls: Calls) -> None:
    for path, called, node in calls:
        if called == "isinstance" and path.parent != PACKAGE / "model":
            names = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
            assert not names & {"SDSeg", "Baseline", "SliceModel"}, path.name


def test_nothing_loads_loosely(calls: Calls) -> None:
    wanted = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
    for path, called, node in calls:
        words = {word.arg: word.value for word in node.keywords}
        if called.endswith("load_state_dict"):
            assert "strict" not in words, path.name
        if called in wanted:
            name, value = wanted[called]
            assert ast.literal_eval(words[name]) is value, path.name


def test_no_error_is_swallowed(nodes: Nodes) -> None:
    """A library may raise anything: it must come out as one of ours, never vanish."""
    for path, node in nodes[ast.ExceptHandler]:
        if node.type is None or _dotted(node.type) in ("Exception", "BaseException"):
            raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            assert raises or path.name in ("app.py", "cohort.py"), path.name


def _loaded(statement: str) -> set[str]:
    """Top-level modules that are loaded after a statement in a fresh interpreter."""
    code = f"{statement}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return {name.split(".")[0] for name in json.loads(run.stdout.splitlines()[-1])}


def test_help_and_the_package_itself_load_nothing_heavy() -> None:
    assert not _loaded("import sdseg_cli.cli.app, sdseg_cli") & HEAVY


def test_settings_need_the_standard_library_only() -> None:
    loaded = _loaded("import sdseg_cli.core.config, sdseg_cli.core.presets") - _loaded("")
    assert loaded - set(sys.stdlib_module_names) == {"sdseg_cli"}


@pytest.mark.slow
def test_the_public_names_are_found_and_others_are_not() -> None:
    names = "Predictor, load_official, read_image, write_mask"
    assert "torch" in _loaded(f"from sdseg_cli import {names}")
    with pytest.raises(ImportError, match="Segmenter"):
        from sdseg_cli import Segmenter  # type: ignore[attr-defined]  # noqa: F401


@pytest.mark.slow
def test_what_a_gpu_is_wanted_for_loads_on_a_bare_torch_machine() -> None:
    modules = ("training.train", "demo.bench", "training.distill")
    loaded = _loaded(f"import {', '.join(f'sdseg_cli.{module}' for module in modules)}")
    assert not loaded & {"monai", "nibabel", "SimpleITK", "skimage"}


def test_preparing_loads_no_torch() -> None:
    assert "torch" not in _loaded("import sdseg_cli.data.prepare")
