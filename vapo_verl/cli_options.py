"""Command-line arguments from dataclasses: each field holds its default and its help text.

@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    source: Path = field(metadata=cli(positional="SOURCE"))
    \"\"\"Parquet file.\"\"\"
    num_rows: int = field(default=256, metadata=cli(low=1))
    \"\"\"Rows drawn.\"\"\"

add_options(parser, Options)                       # SOURCE, --num-rows N
options = options_from(Options, parser.parse_args())
"""

import argparse
import ast
import dataclasses
import inspect
import io
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
_Target = argparse.ArgumentParser | argparse._ArgumentGroup
_GIVEN = "given_options"


class OptionError(ValueError):
    """A value that a user has to correct; the message names the option."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """Options of a field's argument beyond the field's name, type, default and docstring."""

    flag: str = ""
    """Replaces `--field-name`."""
    positional: str = ""
    """Shown name of an argument without a flag."""
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    parse: Callable[[str], Any] | None = None
    """Replaces the field's type."""
    help: str = ""
    """Replaces the field's docstring."""
    group: str = ""
    """Heading of the arguments of a field that is itself a dataclass."""
    low: float | None = None
    """:func:`check_bounds` refuses a lower value."""
    hidden: bool = False
    """No argument: the field is set by code."""
    setting: bool = True
    """Whether results depend on it, for :func:`settings_of`."""


def cli(**how: Any) -> dict[str, Argument]:
    """Metadata of a dataclass field, from the fields of :class:`Argument`."""
    return {"cli": Argument(**how)}


def add_options(
    parser: _Target, options: type, defaults: Mapping[str, Any] = types.MappingProxyType({})
) -> None:
    """Add an argument for every field of a dataclass, and of the dataclasses in it.

    A field without default is required; a bool is a switch that is off; `X | None` takes an X, and
    a tuple one X or more.

    Args:
        defaults: field name -> default; they replace the defaults of the fields.
    """
    hints, texts = typing.get_type_hints(options), _docstrings(options)
    for each in dataclasses.fields(options):
        how, kind = _argument(each), hints[each.name]
        if how.hidden:
            continue
        if dataclasses.is_dataclass(kind):
            inner = parser.add_argument_group(how.group) if how.group else parser
            add_options(inner, typing.cast(type, kind), defaults)
            continue
        default = defaults.get(each.name, each.default)
        text = how.help or texts.get(each.name, "")
        _add(parser, each.name, kind, default, how, text)


def options_from(options: type[T], arguments: argparse.Namespace, **given: Any) -> T:
    """Build the dataclass from the parsed arguments; `given` sets fields directly.

    Raises:
        ValueError: from the dataclass itself.
    """
    hints, values = typing.get_type_hints(options), dict(given)
    for each in dataclasses.fields(typing.cast(Any, options)):
        if each.name in given or _argument(each).hidden:
            continue
        kind = hints[each.name]
        if dataclasses.is_dataclass(kind):
            values[each.name] = options_from(typing.cast(type, kind), arguments)
        else:
            value = getattr(arguments, _destination(each.name, _argument(each)))
            values[each.name] = tuple(value) if isinstance(value, list) else value
    return options(**values)


def given_options(arguments: argparse.Namespace) -> frozenset[str]:
    """Names of fields whose flags are on the command line; switches are not recorded."""
    return getattr(arguments, _GIVEN, frozenset())


def settings_of(options: Any) -> dict[str, Any]:
    """Settings that results depend on, by argument name; nested dataclasses are flattened."""
    found: dict[str, Any] = {}
    for each in dataclasses.fields(options):
        how, value = _argument(each), getattr(options, each.name)
        if dataclasses.is_dataclass(value):
            found |= settings_of(value)
        elif how.setting:
            found[how.positional or _flag(each.name, how)] = value
    return found


def user_path(text: str) -> Path:
    """A path from the command line; `~` is expanded, also in `--option=~/path`."""
    return Path(os.path.expanduser(text))


def escape_output() -> None:
    """Let stdout escape what it cannot encode, as stderr does: a file's name may be any bytes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def check_bounds(options: Any) -> None:
    """Refuse fields below their `low`; call it in `__post_init__`. None is never refused."""
    for each in dataclasses.fields(options):
        how, value = _argument(each), getattr(options, each.name)
        if how.low is not None and value is not None and value < how.low:
            raise OptionError(f"{_flag(each.name, how)} {value}: give {how.low} or more")


def _argument(each: "dataclasses.Field[Any]") -> Argument:
    return each.metadata.get("cli", Argument())


def _flag(name: str, how: Argument) -> str:
    return how.flag or f"--{name.replace('_', '-')}"


def _destination(name: str, how: Argument) -> str:
    return name if how.positional else _flag(name, how).lstrip("-").replace("-", "_")


def _add(parser: _Target, name: str, kind: Any, default: Any, how: Argument, text: str) -> None:
    required = default is dataclasses.MISSING
    if kind is bool:
        assert default is False, "a switch is off unless it is given"
        parser.add_argument(_flag(name, how), action="store_true", help=_escaped(text))
        return
    kind, is_list = _value_type(kind)
    more: dict[str, Any] = {"choices": how.choices} if how.choices else {}
    if how.positional:
        names, more = [name], {"metavar": how.positional, **more}
        nargs = "+" if is_list else None if required else "?"
    else:
        names, nargs = [_flag(name, how)], "+" if is_list else None
        more = {"required": required, "metavar": how.metavar, "action": _StoreGiven, **more}
    parser.add_argument(
        *names,
        type=how.parse or {float: finite, Path: user_path}.get(kind, kind),
        default=None if required else default,
        nargs=nargs,
        help=_escaped(text) + _shown_default(default),
        **more,
    )


class _StoreGiven(argparse.Action):
    """Store the value and record that the flag was given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)
        setattr(namespace, _GIVEN, given_options(namespace) | {self.dest})


def finite(text: str) -> float:
    """Parse a finite number; ArgumentTypeError for anything else, nan and infinity included."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number")
    return value


def _value_type(kind: Any) -> tuple[Any, bool]:
    """The type of one value, and whether the field takes several."""
    if isinstance(kind, types.UnionType):
        (kind,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        return typing.get_args(kind)[0], True
    return kind, False


def _escaped(text: str) -> str:
    return text.replace("%", "%%").removesuffix(".")


def _shown_default(default: Any) -> str:
    if default is dataclasses.MISSING or default is None or default == "":
        return ""
    return " (%(default)r)" if str(default) != str(default).strip() else " (%(default)s)"


def _docstrings(options: type) -> dict[str, str]:
    """Field -> the string below it in the source; empty where there is no source."""
    try:
        (tree,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(options))).body
    except (OSError, TypeError, SyntaxError):
        return {}
    assert isinstance(tree, ast.ClassDef)
    return {
        above.target.id: " ".join(ast.literal_eval(below.value).split())
        for above, below in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(above, ast.AnnAssign)
        and isinstance(above.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
    }
