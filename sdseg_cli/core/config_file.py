"""Settings in and out of TOML. Precedence: defaults < preset < file < `--set key=value`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import tomllib
import types
import typing
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import tomli_w

from sdseg_cli.core.config import LATER, NO_FOLD, SDSEG, SDSEG_ALONE, SEVERAL_CLASSES, RunConfig
from sdseg_cli.core.errors import ConfigError, near
from sdseg_cli.core.json_files import LARGEST, too_deep
from sdseg_cli.core.presets import PRESETS, for_classes

LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029\0"
SHOWN_LETTERS = 60
"""Of a wrong value, in messages."""


def from_dict(values: dict[str, Any], base: RunConfig, *, source: str) -> RunConfig:
    """`base` with `values` laid over it.

    Args:
        values: Nested as in the TOML file, e.g. `{"train": {"steps": 100}}`.
        base: What the missing keys keep.
        source: Where the values come from, for the message.

    Raises:
        ConfigError: A key is unknown or a value has the wrong type.
    """
    overlaid = _overlay(base, values, prefix="", source=source)
    assert isinstance(overlaid, RunConfig)
    return overlaid


def _overlay(base: Any, values: dict[str, Any], *, prefix: str, source: str) -> Any:
    hints = typing.get_type_hints(type(base))
    changes: dict[str, Any] = {}
    for key, value in values.items():
        full = f"{prefix}{key}"
        if key not in hints:
            raise ConfigError(f'{source}: unknown key "{full}".', _known_keys(base, key, full))
        current = getattr(base, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise ConfigError(f'{source}: "{full}" is a section.', f"Set {full}.KEY=VALUE.")
            changes[key] = _overlay(current, value, prefix=f"{full}.", source=source)
        else:
            changes[key] = _converted(value, hints[key], full, source)
    return replace(base, **changes)


def _converted(value: Any, hint: Any, key: str, source: str) -> Any:
    wanted: Any = hint
    if isinstance(hint, types.GenericAlias):  # tuple[int, ...]
        if isinstance(value, list) and all(type(v) is int and abs(v) < LARGEST for v in value):
            return tuple(value)
        wanted = "list of whole numbers"
    elif type(value) is int and abs(value) >= LARGEST:
        wanted = "number of at most 64 bits"
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif type(value) is str and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ConfigError(
            f"{source}: {key} = {_shown(value)} is not UTF-8, which settings have to be.",
            "Rename the folder, or give a link to it that has another name.",
        )
    elif hint is str and type(value) in (int, float):
        return str(value)  # a name may be a number
    elif type(value) is hint:
        return value
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    name = names.get(wanted, wanted)
    raise ConfigError(f"{source}: {key} = {_shown(value)} is no {name}.", f"Give {key} a {name}.")


def _shown(value: Any) -> str:
    """A value of any length, for a message."""
    if type(value) is int and abs(value) >= LARGEST:
        return f"a number of {value.bit_length()} bits"
    try:
        text = repr(value)
    except ValueError:  # such a number within a list
        return f"this {type(value).__name__}"
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}..."


def _known_keys(section: Any, key: str, full: str) -> str:
    """The likeliest names for an unknown key, and the keys of its section."""
    own = [item.name for item in dataclasses.fields(section)]
    prefix = full.removesuffix(key)
    meant = [f"{prefix}{name}" for name in near(key, own)[:1]]
    if not meant:  # right, but in another section
        meant = [each for _, each, _ in _leaves(RunConfig()) if each.rsplit(".", 1)[-1] == key]
    where = f"[{prefix.removesuffix('.')}]" if prefix else "the top level"
    quoted = " or ".join(f'"{one}"' for one in meant)
    hint = f"Did you mean {quoted}? " if meant else ""
    keys = ", ".join(
        f"[{name}]" if dataclasses.is_dataclass(getattr(section, name)) else name for name in own
    )
    return f"{hint}Keys of {where}: {keys}. `sdseg train --show-config` explains them."


def _leaves(section: Any, prefix: str = "") -> Iterator[tuple[Any, str, Any]]:
    """Each setting: its own section, its key with all sections, its value."""
    for item in dataclasses.fields(section):
        key, value = f"{prefix}{item.name}", getattr(section, item.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{key}.")
        else:
            yield section, key, value


def parse_assignment(text: str) -> dict[str, Any]:
    """`"train.steps=100"` -> `{"train": {"steps": 100}}`. Values are TOML; a bare word is a string.

    Raises:
        ConfigError: There is no `=`, or it is more than one line.
    """
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f'--set "{text}" has no value.', "Write --set train.steps=100.")
    if unwanted := [letter for letter in text if letter in LINE_ENDS]:
        raise ConfigError(
            f"--set {text!r} has {unwanted[0]!r} in it.",
            "Give one setting on one line; for several write --set several times.",
        )
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except RecursionError as error:
        raise ConfigError(
            f"--set {key.strip()}: its value is nested too deep.", "Give one value."
        ) from error
    except ValueError:  # no TOML, or a number of thousands of digits
        value = raw
    if too_deep(value):
        raise ConfigError(f"--set {key.strip()}: its value is nested too deep.", "Give one value.")
    for part in reversed(key.strip().split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def load_toml(path: Path, base: RunConfig) -> RunConfig:
    """`base` with the file's values laid over it.

    Raises:
        ConfigError: The file is missing, is no TOML, or has an unknown key or wrong value.
    """
    return from_dict(read_toml(path), base, source=str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """The file's values, nested.

    Raises:
        ConfigError: The file is missing or is no TOML.
    """
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path}: is no file.", "Give a TOML file of settings.")
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}).", "Check the path; TOML is UTF-8."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: no valid TOML ({error}).", "Correct that line.") from error
    except (RecursionError, ValueError) as error:
        deep = isinstance(error, RecursionError)
        why = "nested too deep" if deep else "a number of thousands of digits"
        raise ConfigError(f"{path}: no valid TOML ({why}).", "Correct the file.") from error
    if too_deep(values):
        raise ConfigError(f"{path}: no settings (nested too deep).", "Correct the file.")
    return values


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting, its value, and an explanation."""

    key: str
    """With its sections: `train.steps`."""
    value: Any
    """Of TOML and JSON: a tuple is a list."""
    what: str
    """The line about it in `config.py`."""


def settings_of(config: RunConfig) -> list[Setting]:
    """Every setting, section by section; for another network than SDSeg, without those that only
    SDSeg has, of one class without those of several, and without a fold where there is none.
    """
    unused = set[str]()
    if config.model.network != SDSEG:
        unused = {f"{part}.{key}" for part in ("model", "train") for key in SDSEG_ALONE[part]}
    if config.model.classes == 1:
        unused |= {f"model.{key}" for key in SEVERAL_CLASSES}
    if config.fold == NO_FOLD:
        unused.add("fold")
    sections: dict[str, list[Setting]] = {}
    for section, key, value in _leaves(config):
        place, _, name = key.rpartition(".")
        if not unused & {place, key}:
            plain = list(value) if isinstance(value, tuple) else value
            what = _explained(section.__class__).get(name, "")
            sections.setdefault(place, []).append(Setting(key, plain, what))
    return [setting for settings in sections.values() for setting in settings]


@cache
def _explained(section: type) -> dict[str, str]:
    """Field -> the text below it in the source; nothing where the source is not installed."""
    try:
        lines = ast.parse(inspect.getsource(section)).body[0]
    except (OSError, SyntaxError):
        return {}
    assert isinstance(lines, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(lines.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def to_toml(config: RunConfig, *, explained: bool = False) -> str:
    """The whole configuration, which `load_toml` gives back; with comments if `explained`, else
    without later settings where they, and the preset's own, are at their defaults.
    """
    text, section = "", ""
    plain = _later_settings(RunConfig())
    base, model = PRESETS.get(config.preset, RunConfig()), config.model
    own = _later_settings(for_classes(base, model.classes, overlapping=model.overlapping))
    for setting in settings_of(config):
        if not explained and setting.value == plain.get(setting.key) == own.get(setting.key):
            continue
        place, _, name = setting.key.rpartition(".")
        if place != section:
            text, section = f"{text}\n[{place}]\n", place
        if explained:
            text += f"# {setting.what}\n"
        # The library would give each number of a list a line.
        is_list = isinstance(setting.value, list)
        text += f"{name} = {setting.value}\n" if is_list else tomli_w.dumps({name: setting.value})
    return text


def _later_settings(config: RunConfig) -> dict[str, Any]:
    later = [f"{part}.{name}." for part, names in LATER.items() for name in names]
    return {
        setting.key: setting.value
        for setting in settings_of(config)
        if any(f"{setting.key}.".startswith(name) for name in later)
    }


def as_begun(config: RunConfig, file: Path) -> RunConfig:
    """The settings with which a run goes on: later ones that its file does not state are those of
    the version it began with, where they were not chosen but come from the preset.

    Args:
        config: As they would begin a new run.
        file: Settings of the run; one that is not there changes nothing.

    Raises:
        ConfigError: It cannot be read.
    """
    if not file.is_file():
        return config
    stated = read_toml(file)
    base = PRESETS.get(config.preset, RunConfig())
    base = for_classes(base, config.model.classes, overlapping=config.model.overlapping)
    for part, names in LATER.items():
        section, own, plain = (getattr(one, part) for one in (config, base, RunConfig()))
        said = stated.get(part)
        unsaid = {
            name: getattr(plain, name)
            for name in names
            if not (isinstance(said, dict) and name in said)
            and getattr(section, name) == getattr(own, name)
        }
        config = replace(config, **{part: replace(section, **unsaid)})
    return config


def differing_keys(a: RunConfig, b: RunConfig) -> list[str]:
    """Dotted names of the settings in which two configurations differ."""
    both = zip(_leaves(a), _leaves(b), strict=True)
    return [key for (_, key, value), (_, _, other) in both if value != other]
