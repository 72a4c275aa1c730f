"""Merging flags, environment, file and defaults, and remembering where each value came from."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic_settings import EnvSettingsSource, SettingsError

from ..core.errors import FieldViolation, invalid, invalid_field
from ..core.reading.encodings import as_utf8
from ..host.home import expand
from .contradictions import check
from .fields import Address
from .tree import ENV_PREFIX, Leaf, Settings, leaves

NO_SETTINGS = frozenset(
    f"{ENV_PREFIX}{name}"
    for name in ("ADDRESS", "API_KEY", "CA_FILE", "CERT_FILE", "CONFIG", "DEBUG", "KEY_FILE", "SERVER_NAME")
)
"""Variables with our prefix that are no settings of the server: most are the client's."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, and for each dotted name where its value came from (``default``, ``flag --x``, ...)."""

    settings: Settings
    sources: dict[str, str]
    unknown_variables: tuple[str, ...] = ()
    """Variables with our prefix that name no setting: most likely misspelt."""

    def value(self, leaf: Leaf) -> object:
        """The value of a leaf as plain data; secrets are masked."""
        value: object = self.settings
        for part in leaf.path:
            value = getattr(value, part)
        if isinstance(value, SecretStr):
            return str(value)
        return str(value) if isinstance(value, Address | Path) else value


def load(flags: Mapping[str, object], config_file: str | None = None) -> Loaded:
    """Merge flags (dotted name -> text), the environment and a TOML file into settings.

    Raises ``Error`` INVALID_ARGUMENT whose violations name the flag, the variable or the line of the file.
    """
    config_file = config_file or os.environ.get("LORAMUX_CONFIG") or None
    known = {leaf.name: leaf for leaf in leaves()}
    values: dict[str, object] = {}
    sources = dict.fromkeys(known, "default")
    unknown_names: list[FieldViolation] = []
    for source, found in (
        (f"file {config_file}", _read_toml(config_file) if config_file else {}),
        ("environment", _read_environment()),
        ("flag", dict(flags)),
    ):
        for name, value in found.items():
            if name not in known:
                told = f"unknown setting in {source} (list them with: loramux config show)"
                unknown_names.append(FieldViolation(name, told))
                continue
            values[name] = value
            leaf = known[name]
            sources[name] = {"environment": f"environment {leaf.variable}", "flag": f"flag {leaf.flag}"}.get(
                source, source
            )
    try:
        settings = Settings(**_unflatten(values))
    except ValidationError as error:
        raise invalid([*unknown_names, *_explain(error, known, sources)]) from None
    if unknown_names:
        raise invalid(unknown_names)
    if contradictions := check(settings):
        raise invalid(contradictions)
    variables = {leaf.variable for leaf in known.values()} | NO_SETTINGS
    unknown = sorted(v for v in os.environ if v.upper().startswith(ENV_PREFIX) and v.upper() not in variables)
    return Loaded(settings, sources, tuple(unknown))


def _read_toml(path: str) -> dict[str, object]:
    try:
        return _flatten(tomllib.loads(as_utf8(expand(path).read_bytes()).decode().replace("\r\n", "\n")))
    except OSError as error:
        raise invalid_field("--config", f"cannot read {path}: {error.strerror}") from None
    except RecursionError:
        raise invalid_field("--config", f"{path} is nested too deeply") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise invalid_field("--config", f"{path} is not valid TOML: {error}") from None
    except ValueError as error:
        raise invalid_field("--config", str(error)) from None


def _read_environment() -> dict[str, object]:
    try:
        return _flatten(EnvSettingsSource(Settings)())
    except SettingsError as error:
        told = "the settings of a group have variables of their own, such as LORAMUX_TRAINING__SHARE"
        raise invalid_field("environment", f"{error}; {told}") from None


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _unflatten(flat: Mapping[str, object]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, last = name.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    return tree


_WORDS = {
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than_equal": "at most {le:g}",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "byte_size": "a size such as 512MiB or 2GB",
    "byte_size_unit": "a size such as 512MiB or 2GB",
    "literal_error": "one of {expected}",
}
"""What a value must be, by pydantic's type of error."""


def _explain(error: ValidationError, known: Mapping[str, Leaf], sources: Mapping[str, str]) -> Iterable[FieldViolation]:
    violations = {}
    for item in error.errors(include_url=False):
        # The location of a union member goes on after the field's own path.
        path = next(p for n in range(len(item["loc"]), 0, -1) if (p := ".".join(map(str, item["loc"][:n]))) in known)
        context = item.get("ctx", {})
        words = _WORDS.get(item["type"])
        text = f"must be {words.format(**context)}" if words else str(context.get("error", item["msg"]))
        got = f", got {item['input']!r}"
        if item["type"] == "string_too_short":
            text, got = "must not be empty", ""
        where = "" if sources[path].startswith("flag") else f" (from {sources[path]})"
        violations[path] = FieldViolation(known[path].flag, text + got + where)
    return violations.values()
