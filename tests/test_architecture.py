"""The house rules, enforced: who imports whom, how long a function is, who prints."""

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

VERBS = {
    "bench",
    "case_panels",
    "check",
    "compare",
    "cohort",
    "cohort_ray",
    "cohort_scan",
    "prepare",
    "train",
    "runs",
    "predict",
    "predict_file",
    "predict_memory",
    "predict_outputs",
    "evaluate",
    "evaluate_folders",
    "evaluate_pictures",
    "pair_scoring",
    "pairing",
    "lpips_weights",
    "stability",
    "stability_sweep",
    "stability_trial",
    "demo",
    "distill",
    "splits",
    "held_out",
    "weights",
}
MAY_IMPORT = {
    "bench": {"splits"},
    "cohort": {"cohort_scan"},
    "cohort_ray": {"cohort_scan"},
    "cohort_scan": {"predict", "predict_file", "predict_outputs"},
    "compare": {"evaluate", "evaluate_folders"},
    "distill": {"splits"},
    "case_panels": {"held_out"},
    "evaluate": {"case_panels", "evaluate_pictures", "held_out", "predict"},
    "evaluate_folders": {"pair_scoring", "pairing"},
    "evaluate_pictures": {"held_out"},
    "held_out": {"predict"},
    "pair_scoring": {"pairing"},
    "predict_file": {"predict", "predict_memory", "predict_outputs"},
    "predict_memory": {"predict_outputs"},
    "stability": {"held_out", "predict", "stability_trial"},
    "stability_sweep": {"held_out", "predict", "stability_trial"},
    "stability_trial": {"case_panels", "held_out", "lpips_weights", "predict"},
    "train": {"predict", "splits", "train_pictures"},
}
"""The other verbs, and parts of verbs, that a verb is made of; nothing for those not named."""
DOOR = ("cli.py", "console.py", "live.py", "__main__.py")
SHELVES = {"imaging", "datasets", "model", "training", "metrics", "report"}
SHELF_EXCEPTIONS = {
    ("training", "datasets"),
    ("training", "model"),
    ("training", "splits"),
    ("report", "imaging"),
    ("report", "metrics"),
}
HEAVY = ("torch", "monai", "scipy", "matplotlib", "SimpleITK", "skimage", "nibabel", "numpy")
BANNED_NAMES = {"utils", "manager", "helper", "helpers", "first_stage", "c_concat", "gts"}


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _nodes(*kinds: type[ast.AST]) -> Iterator[tuple[Path, ast.AST]]:
    """Every node of these kinds in the package, with its file: one pass serves a rule."""
    for path in FILES:
        yield from ((path, node) for node in ast.walk(_tree(path)) if isinstance(node, kinds))


def _imports(path: Path) -> Iterator[str]:
    """Dotted names of our own modules a file imports, wherever in the file."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sdseg_cli"):
            assert node.module is not None
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("sdseg_cli"))


def _rooms(path: Path) -> set[str]:
    """First part below the package of everything a file imports."""
    return {name.split(".")[1] for name in _imports(path) if "." in name}


def test_a_function_has_at_most_60_lines() -> None:
    for path, node in _nodes(ast.FunctionDef):
        assert isinstance(node, ast.FunctionDef)
        # Options of a command are its documentation; the docstring is no code either.
        first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
        assert (node.end_lineno or 0) - first.lineno + 1 <= 60, (path.name, node.name)


def test_names_are_the_houses() -> None:
    words = {"id", "arg", "name"}
    for path, node in _nodes(ast.Name, ast.arg, ast.FunctionDef, ast.ClassDef):
        names = {getattr(node, word) for word in words & set(node._fields)}
        assert not (names | {path.stem}) & BANNED_NAMES, path.name


def test_nothing_imports_the_door() -> None:
    for path in FILES:
        inside = path.parent.name == "commands" or path.name in DOOR
        assert inside or not _rooms(path) & {"cli", "commands", "console", "live"}, path.name


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_verb_imports_only_the_verbs_it_is_made_of(verb: str) -> None:
    allowed = MAY_IMPORT.get(verb, set()) | {verb}
    assert _rooms(PACKAGE / f"{verb}.py") & VERBS <= allowed


@pytest.mark.parametrize("shelf", sorted(SHELVES))
def test_shelves_ignore_each_other(shelf: str) -> None:
    for path in (PACKAGE / shelf).rglob("*.py"):
        others = _rooms(path) & (SHELVES | VERBS) - {shelf}
        assert all((shelf, other) in SHELF_EXCEPTIONS for other in others), (path.name, others)


def test_only_the_door_prints_or_exits() -> None:
    banned = ("print", "exit", "sys.exit", "sys.stdout.write", "typer.echo", "SystemExit")
    for path, node in _nodes(ast.Call):
        assert isinstance(node, ast.Call)
        assert path.name in DOOR or ast.unparse(node.func) not in banned, path.name


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
            assert raises or path.name in ("cli.py", "cohort_scan.py"), path.name


def _loaded(statement: str) -> set[str]:
    """Top-level modules that are loaded after a statement in a fresh interpreter."""
    code = f"{statement}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return {name.split(".")[0] for name in json.loads(run.stdout.splitlines()[-1])}


def test_help_loads_nothing_heavy() -> None:
    assert not _loaded("import sdseg_cli.cli.app") & set(HEAVY)


@pytest.mark.parametrize("name", ["config", "presets"])
def test_settings_need_the_standard_library_only(name: str) -> None:
    loaded = _loaded(f"import sdseg_cli.{name}") - _loaded("")
    assert loaded - set(sys.stdlib_module_names) == {"sdseg_cli"}


@pytest.mark.parametrize("verb", ["train", "bench", "distill"])
def test_what_a_gpu_is_wanted_for_loads_on_a_bare_torch_machine(verb: str) -> None:
    assert not _loaded(f"import sdseg_cli.{verb}") & {"monai", "nibabel", "SimpleITK", "skimage"}


def test_preparing_loads_no_torch() -> None:
    assert "torch" not in _loaded("import sdseg_cli.data.prepare")
