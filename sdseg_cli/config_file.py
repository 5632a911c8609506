"""Settings in and out of TOML.

Precedence: defaults < preset < file < `--set key=value`. An unknown key is refused with the nearest
name.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdseg_cli.config import SDSEG_ALONE, RunConfig
from sdseg_cli.errors import ConfigError
from sdseg_cli.networks import SDSEG


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
            raise ConfigError(f'{source}: unknown key "{full}".', _nearest(full))
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
        if isinstance(value, list) and all(type(v) is int for v in value):
            return tuple(value)
        wanted = "list of whole numbers"
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif hint is str and type(value) in (int, float):
        return str(value)  # a name may be a number; where there are choices, these are told
    elif type(value) is hint:
        return value
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    name = names.get(wanted, wanted)
    raise ConfigError(f"{source}: {key} = {value!r} is no {name}.", f"Give {key} a {name}.")


def _all_keys(config: Any, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            keys += _all_keys(value, f"{prefix}{item.name}.")
        else:
            keys.append(f"{prefix}{item.name}")
    return keys


def _nearest(key: str) -> str:
    keys = _all_keys(RunConfig())
    last = {k.rsplit(".", 1)[-1]: k for k in keys}
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    if not close:
        short = difflib.get_close_matches(key.rsplit(".", 1)[-1], list(last), n=1, cutoff=0.5)
        close = [last[short[0]]] if short else []
    return f'Did you mean "{close[0]}"?' if close else f"Known keys: {', '.join(keys)}."


def parse_assignment(text: str) -> dict[str, Any]:
    """`"train.steps=100"` -> `{"train": {"steps": 100}}`. Values are TOML; a bare word is a string.

    Raises:
        ConfigError: There is no `=`.
    """
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f'--set "{text}" has no value.', "Write --set train.steps=100.")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw
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
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).", "Check --config.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: no valid TOML ({error}).", "Mend the line it names.") from error


def to_toml(config: RunConfig) -> str:
    """The whole configuration, one section per dataclass; `load_toml` gives it back. For another
    network than SDSeg, what only SDSeg has is left out.
    """
    unused = set[str]()
    if config.model.network != SDSEG:
        unused = {f"{part}.{key}" for part in ("model", "train") for key in SDSEG_ALONE[part]}
    lines = _section(config, "", unused)
    return "\n".join(lines).lstrip("\n") + "\n"


def _section(config: Any, name: str, unused: set[str]) -> list[str]:
    lines = [f"\n[{name}]"] if name else []
    below: list[str] = []
    for item in dataclasses.fields(config):
        value, key = getattr(config, item.name), f"{name}.{item.name}" if name else item.name
        if key in unused:
            continue
        if dataclasses.is_dataclass(value):
            below += _section(value, key, unused)
        else:
            # JSON and TOML write strings, numbers, booleans and lists alike.
            written = json.dumps(list(value) if isinstance(value, tuple) else value)
            lines.append(f"{item.name} = {written}")
    return lines + below


def differing_keys(a: RunConfig, b: RunConfig) -> list[str]:
    """Dotted names of the settings in which two configurations differ."""

    def value(config: RunConfig, key: str) -> Any:
        found: Any = config
        for part in key.split("."):
            found = getattr(found, part)
        return found

    return [key for key in _all_keys(a) if value(a, key) != value(b, key)]
