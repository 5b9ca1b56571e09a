"""Flags in a TOML file: read for `--config`, and written into every run, so that it can be repeated."""

import json
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from models import PRETRAINING
from pipeline.errors import UserError
from train.recipes import LABELS_ONLY

CONFIG = "config.toml"
FAMILY = "family"  # of a comparison: [family.vivit] holds for vivit alone
COMMAND_LINE_ONLY = {"help", "version", "config", "resume", "overwrite", "as_json", "verbose"}


def read_config(path: Path, command: click.Command) -> dict[str, Any]:
    """The file's values by parameter name, as `click.Context.default_map` takes them.

    Keys are the command's flags without their dashes; `option` is a table. Raises `UserError`, which names file
    and key, for a key that is no flag, or a value that the flag would not take.
    """
    values = _parsed(path)
    if "models" in flags_of(command):
        values.pop(FAMILY, None)
    return _by_name(f"{path}: ", values, command, flags_of(command))


def read_families(path: Path, command: click.Command) -> dict[str, dict[str, Any]]:
    """What `[family.NAME]` tables say for one family alone: {family: values as `read_config` returns them}.

    Raises `UserError` as `read_config` does, for families that don't exist, too.
    """
    from train.recipes import RECIPES, TrainRecipe

    tables = _parsed(path).get(FAMILY, {})
    if not isinstance(tables, dict):
        raise UserError(f"{path}: {FAMILY}: must be a table for each family, such as [{FAMILY}.vivit]")
    own = {*TrainRecipe.__dataclass_fields__, "weights", "options"}
    flags = {key: flag for key, flag in flags_of(command).items() if flag.name in own}
    found = {}
    for family, values in tables.items():
        if family not in RECIPES or not isinstance(values, dict):
            raise UserError(
                f"{path}: {FAMILY}.{family}: must be a table, and its name one of {', '.join(RECIPES)}"
            )
        found[family] = _by_name(f"{path}: {FAMILY}.{family}.", values, command, flags)
    return found


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"--config {path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"--config {path}: cannot be read as TOML: {error}") from error


def _by_name(
    where: str, values: dict[str, Any], command: click.Command, flags: Mapping[str, click.Option]
) -> dict[str, Any]:
    """Checked values by the names of their parameters. Raises `UserError`."""
    found = {}
    for key, value in values.items():
        flag = flags.get(key.replace("_", "-"))
        if flag is None or flag.name is None:
            near = get_close_matches(key.replace("_", "-"), flags, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; `train {command.name} --help` lists the flags"
            raise UserError(f"{where}{key}: is no setting of `train {command.name}`{hint}")
        if flag.name in found:
            raise UserError(f"{where}{key}: is given twice, with - and with _")
        found[flag.name] = _checked(f"{where}{key}", flag, value)
    return found


def flags_of(command: click.Command) -> dict[str, click.Option]:
    """The flags that a file may give, by name without dashes."""
    options = [param for param in command.params if isinstance(param, click.Option)]
    return {option.opts[0].lstrip("-"): option for option in options if option.name not in COMMAND_LINE_ONLY}


def _checked(where: str, flag: click.Option, value: Any) -> Any:
    """The value as the command line would give it. Raises `UserError`."""
    if flag.multiple:
        return _pairs(where, value)
    wanted, kinds = _kind(flag)
    if not isinstance(value, kinds) or (isinstance(value, bool) and not flag.is_flag):
        raise UserError(f"{where} = {_toml(value)}: must be {wanted}")
    try:
        flag.type.convert(value, flag, None)
    except click.BadParameter as error:
        raise UserError(f"{where} = {_toml(value)}: {error.message}") from error
    return value


def _kind(flag: click.Option) -> tuple[str, tuple[type, ...]]:
    if flag.is_flag:
        return "true or false", (bool,)
    if isinstance(flag.type, click.types.IntParamType):
        return "a whole number", (int,)
    if isinstance(flag.type, click.types.FloatParamType):
        return "a number", (int, float)
    return "a word in quotes", (str,)


def _pairs(where: str, value: Any, prefix: str = "") -> list[str]:
    """A table as NAME=VALUE, a table in it as OUTER.NAME=VALUE; a word, or a list of words, as itself."""
    words = value if isinstance(value, list) else [value]
    if all(isinstance(word, str) for word in words) and not prefix:
        return words
    if not isinstance(value, dict):
        raise UserError(f"{where} = {_toml(value)}: must be a table, such as {{fusion = 'concat'}}")
    pairs = []
    for name, one in value.items():
        if isinstance(one, dict):
            pairs += _pairs(f"{where}.{name}", one, f"{prefix}{name}.")
        elif isinstance(one, str | int | float | bool):
            pairs.append(f"{prefix}{name}={one if isinstance(one, str) else json.dumps(one)}")
        else:
            raise UserError(f"{where}.{name} = {_toml(one)}: must be a word, a number, true or false")
    return pairs


def config_text(settings: Mapping[str, Any]) -> str:
    """Settings as `RunSettings.as_dict` has them, as TOML that `read_config` takes, without what is not given."""
    command, left_out, model = "run", {"options"}, settings["model"]
    if model in PRETRAINING:
        command, left_out, model = "pretrain", {"options", *LABELS_ONLY}, model.removesuffix("_pretraining")
    lines = [f"# The settings of this run. `train {command} --config` repeats it.\n"]
    for name, value in {**settings, "model": model}.items():
        if name not in left_out and value not in (None, []):
            lines.append(f"{name.replace('_', '-')} = {_toml(value)}\n")
    if settings.get("options"):
        lines.append("\n[option]\n")
        for name, value in settings["options"].items():
            plain = isinstance(value, str | int | float)
            lines.append(f"{name} = {_toml(value if plain else json.dumps(value))}\n")
    return "".join(lines).encode("utf-8", "backslashreplace").decode()


def _toml(value: Any) -> str:
    """A value as TOML. Words are escaped as JSON's, which TOML reads, but for DEL and halves of a pair."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)
