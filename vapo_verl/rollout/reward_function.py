"""A user's function gives R_acc of Eq. 5 in place of the rules of this package.

It also says whether a response counts as correct, which opens the gate of the anchors. A function
that fails is a failure of its row: the response is left out and counted, and never scored 0.
"""

import ast
import asyncio
import copy
import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vapo_verl.config import JUDGE_STYLE
from vapo_verl.rollout.sample import Outcome
from vapo_verl.settings import FIND_PACKAGE, find_module

FUNCTION_KEY = "reward.custom_reward_function"
ARGUMENTS = ("data_source", "solution_str", "ground_truth", "extra_info")
"""Names of a reward function's arguments."""
OWN_NAMES = frozenset(
    {"format", "perception", "unparsed", "truncated", "reward", "acc_success_only"}
)
"""Names under which this package and veRL report parts of the reward."""


class RewardFunctionFailed(RuntimeError):
    """A user's reward function raised, or did not return a score."""


def function_path(config: Any) -> str | None:
    """The file of the user's reward function, if there is one."""
    return (config.reward.get("custom_reward_function") or {}).get("path") or None


def check_reward_function(config: Any) -> None:
    """Refuse a reward function that cannot be found or called, or that a judge stands beside.

    Its file is read but not run.

    Raises:
        ValueError: with key, value and fix.
    """
    legacy = config.get("custom_reward_function") or {}
    if legacy.get("path"):
        raise ValueError(
            f"custom_reward_function.path={legacy['path']!r}: nothing reads this older key; set "
            f"{FUNCTION_KEY}.path"
        )
    path = function_path(config)
    if path is None:
        return
    arguments = config.reward.custom_reward_function.get("reward_kwargs", {})
    if not isinstance(arguments, Mapping):
        raise ValueError(
            f"{FUNCTION_KEY}.reward_kwargs={arguments!r} are no arguments; set "
            f"+{FUNCTION_KEY}.reward_kwargs.NAME=VALUE, or leave it out"
        )
    for name in arguments:
        if name in ARGUMENTS:  # veRL would give it in place of the response's own
            raise ValueError(
                f"{FUNCTION_KEY}.reward_kwargs.{name}={arguments[name]!r}: {name} is of the "
                "response; give the argument another name"
            )
    function = config.reward.custom_reward_function.get("name")
    _check_function(path, function, [str(name) for name in arguments])
    if config.vapo.reward.answer_style == JUDGE_STYLE:
        raise ValueError(
            f"vapo.reward.answer_style={JUDGE_STYLE} and {FUNCTION_KEY}.path={path!r}: one of "
            "them gives R_acc; leave the other one out"
        )


def _source_of(path: str) -> Path | None:
    """The function's file, None for a compiled one; a ``pkg://`` path is not imported."""
    if not path.startswith("pkg://"):
        file = Path(path.removeprefix("file://")).expanduser()
        if not file.is_file() or file.suffix != ".py":  # veRL imports no other
            raise ValueError(f"{FUNCTION_KEY}.path={path!r} is no file NAME.py; give a Python file")
        return file
    try:
        found = find_module(path.removeprefix("pkg://").replace("/", "."))  # as veRL reads it
    except ModuleNotFoundError as error:
        raise ValueError(f"{FUNCTION_KEY}.path={path!r}: {error}; {FIND_PACKAGE}") from None
    if found.origin is None:
        raise ValueError(
            f"{FUNCTION_KEY}.path={path!r} is a folder without __init__.py, which has no "
            "functions; name a module in it"
        )
    file = Path(found.origin)
    return file if file.suffix == ".py" and file.is_file() else None


def _check_function(path: str, name: object, arguments: Sequence[str]) -> None:
    file = _source_of(path)
    if file is None:
        return
    try:
        body = ast.parse(file.read_bytes(), str(file)).body
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"{FUNCTION_KEY}.path={path!r} is no Python: {error}; correct it"
        ) from error
    names = {given for statement in body for given in _names_of(statement)}
    if not names & {name, "*", "__getattr__"}:  # the last two may give any
        near = difflib.get_close_matches(str(name), sorted(names), n=3) or sorted(names)[:10]
        raise ValueError(
            f"{FUNCTION_KEY}.name={name!r}: {path} defines no such function; it has "
            f"{', '.join(near) or 'none'}"
        )
    binding = next((each for each in reversed(body) if name in _names_of(each)), None)
    if isinstance(binding, ast.FunctionDef | ast.AsyncFunctionDef) and not binding.decorator_list:
        what = f"{FUNCTION_KEY}.name={name!r} in {path}"
        _check_call(what, binding.args, arguments)
        _check_returned_names(what, binding)
    elif isinstance(binding, ast.Assign) and isinstance(binding.value, ast.Constant):
        raise ValueError(f"{FUNCTION_KEY}.name={name!r} is a constant in {path}; name a function")


def _check_call(what: str, takes: ast.arguments, arguments: Sequence[str]) -> None:
    """Refuse a function that does not take the arguments that it will be given, by name."""
    given = (*ARGUMENTS, *arguments)
    positional = [*takes.posonlyargs, *takes.args]
    required = positional[: len(positional) - len(takes.defaults)]
    required += [
        argument
        for argument, default in zip(takes.kwonlyargs, takes.kw_defaults, strict=True)
        if default is None
    ]
    accepted = {argument.arg for argument in (*takes.args, *takes.kwonlyargs)}
    unknown = [name for name in given if name not in accepted and takes.kwarg is None]
    lacking = [
        argument.arg
        for argument in required
        if argument.arg not in given or argument in takes.posonlyargs
    ]
    if unknown or lacking:
        problem = f"takes no {unknown[0]}" if unknown else f"needs {lacking[0]}, too"
        raise ValueError(
            f"{what} is called with {', '.join(f'{name}=' for name in given)} and {problem}; "
            "correct its arguments, or reward_kwargs"
        )


def _check_returned_names(what: str, function: ast.AST) -> None:
    """Refuse a function that returns ``{...}`` or ``dict(...)`` with a name of this package."""
    for statement in _returns_in(function):
        for name in _names_in(statement.value):
            if name in OWN_NAMES:
                raise ValueError(
                    f"{what} returns {name!r} in line {statement.lineno}; this package reports "
                    f"values under {', '.join(sorted(OWN_NAMES))}: rename it"
                )


def _returns_in(node: ast.AST) -> Iterator[ast.Return]:
    """The return statements of a function, without those of functions inside."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Return):
            yield child
        elif not isinstance(child, _DEFINITIONS):
            yield from _returns_in(child)


def _names_in(value: ast.expr | None) -> list[object]:
    """Names in a mapping that is spelled out; for another expression none."""
    if isinstance(value, ast.Dict):
        return [key.value for key in value.keys if isinstance(key, ast.Constant)]
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "dict":
        return [keyword.arg for keyword in value.keywords]
    return []


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _names_of(statement: ast.stmt) -> list[str]:
    """Names that a top-level statement of a module binds; for a block, all that are inside."""
    if isinstance(statement, _DEFINITIONS):
        return [statement.name]
    names = []
    for node in ast.walk(statement):
        if isinstance(node, _DEFINITIONS):
            names.append(node.name)
        elif isinstance(node, ast.alias):
            names.append(node.asname or node.name.partition(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append(node.id)
    return names


class RewardFunction:
    """A user's function ``(data_source, solution_str, ground_truth, extra_info, **reward_kwargs)``.

    It is veRL's ``reward.custom_reward_function``, read by veRL. It may be a plain function, which
    runs in a thread, or a coroutine function. It returns R_acc in [0, 1] as a number, or a mapping
    with it as ``score``. The mapping's ``acc``, if any, says in place of the score whether the
    answer is correct (1 is); other numbers and texts are reported.

    Args:
        compared: the name by which a group filter compares responses, if there is a filter.
    """

    def __init__(self, call: Callable[..., Any], name: str, compared: str | None = None) -> None:
        self._call, self._name, self._compared = call, name, compared
        self._types: dict[str, type] = {}
        """Type of the values under each name of a mapping: veRL averages numbers, but not texts."""

    @classmethod
    def of(cls, config: Any) -> "RewardFunction | None":
        """The function of a composed config; None if none is set. Its file is run once."""
        path = function_path(config)
        if path is None:
            return None
        settings = config.reward.custom_reward_function
        groups = (config.get("algorithm") or {}).get("filter_groups") or {}
        compared = groups.get("metric") if groups.get("enable") else None
        key = (path, str(settings.get("name")), repr(settings.get("reward_kwargs")), compared)
        if key not in _loaded:
            from verl.trainer.ppo.reward import get_custom_reward_fn

            name = f"{path}:{settings.name}"
            try:
                call = get_custom_reward_fn(config)
            except (Exception, SystemExit) as error:
                raise RewardFunctionFailed(f"{name}: {_said(error)}") from error
            assert call is not None
            _loaded[key] = cls(call, name, compared)
        return _loaded[key]

    async def score(
        self, text: str, row: Mapping[str, Any], extra_fields: Mapping[str, Any]
    ) -> Outcome:
        """The outcome of a response.

        Args:
            extra_fields: of the response; the function gets them in ``extra_info``, over the row's.

        Raises:
            RewardFunctionFailed: it raised, or did not return a score.
        """
        arguments = {
            "data_source": row.get("data_source"),
            "solution_str": text,
            "ground_truth": copy.deepcopy(row["reward_model"]["ground_truth"]),
            "extra_info": {**copy.deepcopy(row.get("extra_info") or {}), **extra_fields},
        }

        def call() -> tuple[Any, BaseException | None]:
            # returned, not raised: a StopIteration would never reach the awaiting coroutine, which
            # would take a CancelledError for its own
            try:
                return self._call(**arguments), None
            except BaseException as error:
                return None, error

        loop = asyncio.get_running_loop()
        result, error = await loop.run_in_executor(None, call)
        if error is None and hasattr(result, "__await__"):
            result, error = await _awaited(result)
        if error is not None:
            raise RewardFunctionFailed(f"{self._name}: {_said(error)}") from error
        try:
            outcome = read_score(result, self._compared)
            self._check_types(outcome.info)
        except ValueError as problem:
            raise RewardFunctionFailed(f"{self._name}: {problem}") from None
        return outcome

    def _check_types(self, info: Mapping[str, object]) -> None:
        for name, value in info.items():
            expected = self._types.setdefault(name, type(value))
            if type(value) is not expected:
                raise ValueError(
                    f"{name!r} is {_KINDS[type(value)]}, and {_KINDS[expected]} for another "
                    "response; return one of them"
                )


_loaded: dict[tuple[str, str, str, str | None], RewardFunction] = {}


_KINDS = {float: "a number", str: "a text"}


async def _awaited(result: Any) -> tuple[Any, BaseException | None]:
    """What a coroutine returns or raises, in a task of its own: it may cancel itself."""

    async def guarded() -> tuple[Any, BaseException | None]:
        try:
            return await result, None
        except BaseException as error:
            return None, error

    task = asyncio.ensure_future(guarded())
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:  # the response is cancelled, not the coroutine by itself
        task.cancel()
        raise
    return task.result()


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def read_score(result: object, compared: str | None = None) -> Outcome:
    """Read the return value of a user's function.

    A name with the value None is not reported for this response; in veRL's validation metrics and
    in :func:`info_means` each name is of the responses that have it.

    Args:
        compared: a name that may not be None: a group filter ends the run at a response without it.

    Raises:
        ValueError: it is no score; the message says what to return.
    """
    if not isinstance(result, Mapping):
        return Outcome.of(_fraction(result, "it returned"))
    if "score" not in result:
        raise ValueError(f"it returned a mapping of {sorted(map(str, result))}; give it a 'score'")
    score = _fraction(result["score"], "its score is")
    accuracy = _fraction(result["acc"], "its acc is") if "acc" in result else score
    info: dict[str, float | str] = {}
    for name, value in result.items():
        if not isinstance(name, str) or name in OWN_NAMES:
            raise ValueError(f"it returned {name!r}, which is a name of this package; rename it")
        if name != "score" and (value is not None or name == compared):
            is_text = isinstance(value, str)
            info[name] = _text(value, name) if is_text else _number(value, f"{name!r} is")
    return Outcome(score=score, correct=accuracy == 1, info=info)


def _fraction(value: object, what: str) -> float:
    number = _number(value, what)
    if not 0 <= number <= 1:
        raise ValueError(
            f"{what} {number!r}; give a number in [0, 1], which vapo.reward.accuracy_weight scales"
        )
    return number


def _text(value: str, name: str) -> str:
    """A plain `str`, also from a subclass, that files and other processes accept."""
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{name!r} holds half of a surrogate pair; give a text in Unicode")
    return str(value)


def _number(value: object, what: str) -> float:
    if hasattr(value, "item"):  # of numpy and torch
        with suppress(ValueError, RuntimeError):  # it has several elements
            value = value.item()
    if not isinstance(value, bool | int | float):
        raise ValueError(f"{what} a {type(value).__name__}; give a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def info_means(infos: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """``vapo/reward/user/NAME``: means of the numbers that a user's function returned.

    Args:
        infos: of responses, with this package's own parts; nan and infinities are left out.
    """
    own = {*OWN_NAMES, "acc"}
    columns: dict[str, list[float]] = {}
    for info in infos:
        for name, value in info.items():
            if name not in own and isinstance(value, int | float) and math.isfinite(value):
                columns.setdefault(name, []).append(float(value))
    return {f"vapo/reward/user/{name}": _mean(values) for name, values in columns.items()}


def _mean(values: list[float]) -> float:
    try:
        return math.fsum(values) / len(values)
    except OverflowError:
        return math.fsum(value / len(values) for value in values)
