"""R_acc by a user's function."""

import asyncio
import math
import re
from importlib.machinery import EXTENSION_SUFFIXES

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.paths import ROOT
from tests.rollout.rewarded import ROW, composed, until
from vapo_verl.launch import make_paths_absolute
from vapo_verl.rollout.agent_loop_worker import failure_kind, reason_of
from vapo_verl.rollout.reward_function import (
    FUNCTION_KEY,
    OWN_NAMES,
    RewardFunction,
    RewardFunctionFailed,
    check_reward_function,
    info_means,
    read_score,
)
from vapo_verl.rollout.reward_judge import JUDGE_KEY
from vapo_verl.rollout.sample import Outcome


@pytest.mark.parametrize(
    ("result", "outcome"),
    [
        (1, Outcome(score=1.0, correct=True)),
        (True, Outcome(score=1.0, correct=True)),
        (0.25, Outcome(score=0.25, correct=False)),
        (np.float32(0.5), Outcome(score=0.5, correct=False)),
        (np.bool_(True), Outcome(score=1.0, correct=True)),
        (np.array([1.0]), Outcome(score=1.0, correct=True)),
        (torch.tensor(1), Outcome(score=1.0, correct=True)),
        ({"score": 0.5}, Outcome(score=0.5, correct=False)),
        ({"score": 0.5, "acc": True}, Outcome(score=0.5, correct=True, info={"acc": 1.0})),
        ({"score": 1.0, "acc": 0}, Outcome(score=1.0, correct=False, info={"acc": 0.0})),
        (
            {"score": 0, "pred": "7", "steps": np.int64(4)},
            Outcome(score=0.0, correct=False, info={"pred": "7", "steps": 4.0}),
        ),
        (
            {"score": 0, "pred": np.str_("caf\u00e9"), "\u00e9tapes": math.inf},
            Outcome(score=0.0, correct=False, info={"pred": "caf\u00e9", "\u00e9tapes": math.inf}),
        ),
        (
            {"score": 1, "acc": 1, "pred": None, "steps": None},
            Outcome(score=1.0, correct=True, info={"acc": 1.0}),
        ),
    ],
)
def test_a_score_is_a_number_or_a_mapping_with_one(result, outcome):
    assert read_score(result) == outcome


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "it returned a NoneType; give a number"),
        ("1.0", "it returned a str; give a number"),
        ((1.0, {}), "it returned a tuple"),
        ([1.0], "it returned a list"),
        (1j, "it returned a complex"),
        (np.zeros(2), "it returned a ndarray"),
        (torch.zeros(2), "it returned a Tensor"),
        (math.nan, r"it returned nan; give a number in \[0, 1\]"),
        (torch.tensor(math.nan), "it returned nan"),
        (math.inf, "it returned inf"),
        (10**400, "it returned inf"),
        (-0.1, "it returned -0.1; give a number in"),
        (2, "it returned 2.0; .* which vapo.reward.accuracy_weight scales"),
        ({}, "it returned a mapping of .*; give it a 'score'"),
        ({"reward": 1.0}, r"a mapping of \['reward'\]; give it a 'score'"),
        ({"score": None}, "its score is a NoneType"),
        ({"score": 1.0, "acc": "yes"}, "its acc is a str"),
        ({"score": 1.0, "acc": None}, "its acc is a NoneType; give a number"),
        ({"score": 1.0, "format": None}, "'format', which is a name of this package"),
        ({"score": 1.0, "acc": 3}, "its acc is 3.0"),
        ({"score": 1.0, "format": 0.0}, "'format', which is a name of this package; rename it"),
        ({"score": 1.0, "parts": {"a": 1}}, "'parts' is a dict; give a number"),
        ({"score": 1.0, 7: 1}, "it returned 7, which"),
        ({"score": 1.0, "acc_success_only": 1}, "which is a name of this package"),
        ({"score": 1.0, "pred": "caf\udce9"}, "'pred' holds half of a surrogate pair"),
    ],
)
def test_what_is_no_score_is_refused(result, message):
    with pytest.raises(ValueError, match=message):
        read_score(result)


FUNCTIONS = '''
"""A user's rewards."""
import asyncio

LOADS = []
LOADS.append(1)


def scored(data_source, solution_str, ground_truth, extra_info, bonus=0.0):
    extra_info["hints"].append("changed")
    score = float(ground_truth in solution_str)
    return {"score": score, "bonus": bonus, "seen": extra_info["index"]}


async def slowly(data_source, solution_str, ground_truth, extra_info):
    await asyncio.sleep(0)
    return 0.5


class Callable:
    async def __call__(self, **arguments):
        return 1


hidden = Callable()


def stops(**arguments):
    raise StopIteration


def leaves(**arguments):
    raise SystemExit(3)


def cancels(**arguments):
    raise asyncio.CancelledError("by a library of mine")


async def streams(**arguments):
    yield 1.0


def divides(**arguments):
    return 1 / 0


def times_out(**arguments):
    raise TimeoutError("the server of my reward")


async def fails_later(**arguments):
    await asyncio.sleep(0)
    raise KeyError("x")


async def cancels_itself(**arguments):
    asyncio.current_task().cancel()
    await asyncio.sleep(60)


async def gives_up(**arguments):
    raise asyncio.CancelledError("by a library of mine")


async def waits(**arguments):
    await asyncio.Event().wait()


def varies(solution_str, **arguments):
    values = {"": None, "7": 7, "8": 8}
    return {"score": 0.0, "pred": values.get(solution_str, "none")}


def says_bytes(**arguments):
    raise ValueError("caf\\udce9")


def nothing(**arguments):
    pass


def other_arguments(text, truth):
    return 1.0
'''


@pytest.fixture
def function(tmp_path):
    """`function("name", reward_kwargs...)` -> the user's function of that name.

    `filtered`: what a group filter compares.
    """
    path = tmp_path / "rewards.py"
    path.write_text(FUNCTIONS)

    def load(name, filtered=None, **arguments):
        settings = {"path": str(path), "name": name, "reward_kwargs": arguments}
        groups = {"enable": filtered is not None, "metric": filtered}
        config = {
            "reward": {"custom_reward_function": settings},
            "algorithm": {"filter_groups": groups},
        }
        return RewardFunction.of(OmegaConf.create(config))

    return load


async def test_a_function_gets_verls_arguments_and_those_of_the_config(function):
    outcome = await function("scored", bonus=0.25).score("it is 7", ROW, {"num": 1})
    assert outcome == Outcome(score=1.0, correct=True, info={"bonus": 0.25, "seen": 3.0})
    assert ROW["extra_info"]["hints"] == ["a"]  # siblings share the row
    assert not (await function("scored", bonus=0.25).score("it is 8", ROW, {})).correct


@pytest.mark.parametrize(("name", "score"), [("slowly", 0.5), ("hidden", 1.0)])
async def test_a_function_may_be_a_coroutine(function, name, score):
    assert (await function(name).score("", ROW, {})).score == score


def test_a_functions_file_is_run_once_a_process(function):
    assert function("scored", bonus=1) is function("scored", bonus=1)
    assert function("scored", bonus=1) is not function("scored", bonus=2)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("stops", "StopIteration"),
        ("leaves", "SystemExit: 3"),
        ("cancels", "CancelledError: by a library of mine"),
        ("streams", "it returned a async_generator; give a number"),
        ("divides", "ZeroDivisionError: division by zero"),
        ("times_out", "TimeoutError: the server of my reward"),
        ("fails_later", "KeyError: 'x'"),
        ("cancels_itself", "CancelledError"),
        ("gives_up", "CancelledError: by a library of mine"),
        ("says_bytes", "ValueError: caf\udce9"),
        ("nothing", "it returned a NoneType; give a number"),
        ("other_arguments", "TypeError: "),
    ],
)
async def test_a_failing_function_is_named_and_a_failure_of_its_row(function, name, said):
    with pytest.raises(RewardFunctionFailed) as caught:
        await asyncio.wait_for(function(name).score("", ROW, {}), 60)
    assert f"rewards.py:{name}: {said}" in str(caught.value)
    assert failure_kind(caught.value) == "row"
    assert reason_of(caught.value).startswith("RewardFunctionFailed: ")
    assert reason_of(caught.value).encode()


async def test_a_response_that_is_cancelled_takes_its_function_with_it(function):
    before = asyncio.all_tasks()
    scoring = asyncio.ensure_future(function("waits").score("", ROW, {}))
    await until(lambda: len(asyncio.all_tasks() - before) == 2)  # the coroutine runs
    scoring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scoring
    await until(lambda: asyncio.all_tasks() <= before)


async def test_a_name_that_is_now_a_number_and_now_a_text_is_refused(function):
    """veRL averages a validation's numbers: a text among them would end the run."""
    varies = function("varies")
    assert (await varies.score("", ROW, {})).info == {}
    assert (await varies.score("7", ROW, {})).info == {"pred": 7.0}
    with pytest.raises(RewardFunctionFailed, match="'pred' is a text, and a number for another"):
        await varies.score("seven", ROW, {})
    assert (await varies.score("", ROW, {})).info == {}
    assert (await varies.score("8", ROW, {})).info == {"pred": 8.0}


async def test_none_is_refused_under_the_name_that_a_group_filter_compares(function):
    """veRL's filter ends the run at a response without it."""
    by_pred = function("varies", filtered="pred")
    assert (await by_pred.score("7", ROW, {})).info == {"pred": 7.0}
    with pytest.raises(RewardFunctionFailed, match="'pred' is a NoneType; give a number"):
        await by_pred.score("", ROW, {})
    by_reward = function("varies", filtered="reward")
    assert (await by_reward.score("", ROW, {})).info == {}


def test_numbers_of_a_function_are_averaged_under_its_names():
    infos = [
        {"acc": 1.0, "format": 1.0, "steps": 2.0, "pred": "7"},
        {"acc": 0.0, "format": 1.0, "steps": math.nan},
        {"acc": 0.0, "format": 1.0, "steps": 4.0, "late": True},
    ]
    assert info_means(infos) == {"vapo/reward/user/steps": 3.0, "vapo/reward/user/late": 1.0}


def test_numbers_without_a_mean_do_not_end_the_run():
    rows = [{"a": math.inf, "b": 1.5e308}, {"a": -math.inf, "b": 1.5e308}, {"a": 2.0}]
    assert info_means(rows) == {"vapo/reward/user/a": 2.0, "vapo/reward/user/b": 1.5e308}
    assert info_means([{"a": math.inf}]) == {}


async def test_the_loop_takes_the_functions_score_and_its_word_for_the_gate(
    run_loop, dataset, tmp_path
):
    path = tmp_path / "rewards.py"
    path.write_text(
        "def half(solution_str, **_):\n"
        "    return {'score': 0.5, 'acc': 1, 'length': len(solution_str), 'pred': None}\n"
        "def none(**_):\n"
        "    return 0.0\n"
        "def broken(**_):\n"
        "    raise RuntimeError('no reward today')\n"
    )
    asked = f"{FUNCTION_KEY}.path={path}"
    output = await run_loop(dataset[0], asked, f"{FUNCTION_KEY}.name=half")
    reward = output.extra_fields["vapo"]["reward"]
    assert len(output.extra_fields["vapo"]["anchors"]) == 8
    assert reward["accuracy"] == 0.5
    assert output.reward_score == pytest.approx(0.5 + reward["format"] + 0.1 * reward["perception"])
    info = output.extra_fields["reward_extra_info"]
    assert info["acc"] == 1.0 and info["length"] > 0 and "pred" not in info

    output = await run_loop(dataset[0], asked, f"{FUNCTION_KEY}.name=none")
    assert output.extra_fields["vapo"]["anchors"] == []
    assert output.reward_score == output.extra_fields["vapo"]["reward"]["format"]

    with pytest.raises(RewardFunctionFailed, match=r"rewards\.py:broken: RuntimeError: no reward"):
        await run_loop(dataset[0], asked, f"{FUNCTION_KEY}.name=broken")


def refused(*overrides):
    with pytest.raises(ValueError) as caught:
        check_reward_function(composed(*overrides))
    return str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        "def mine(**_): return 1",
        "async def mine(**_): return 1",
        "mine = print",
        "from os.path import join as mine",
        "from elsewhere import *",
        "if True:\n    def mine(**_): return 1",
        "if True:\n    async def mine(**_): return 1",
        "try:\n    from fast import mine\nexcept ImportError:\n    from slow import mine",
        "try:\n    from fast import *\nexcept ImportError:\n    from slow import one",
        "with lock:\n    class mine: pass",
        "try:\n    from fast import mine\nexcept ImportError:\n    mine = None",
        "raise RuntimeError('it is read, not run')\ndef mine(**_): return 1",
    ],
)
def test_a_function_is_found_without_running_its_file(tmp_path, body):
    (tmp_path / "rewards.py").write_text(body)
    path = tmp_path / "rewards.py"
    check_reward_function(composed(f"{FUNCTION_KEY}.path={path}", f"{FUNCTION_KEY}.name=mine"))


def test_a_function_that_is_not_there_is_refused(tmp_path):
    path = tmp_path / "rewards.py"
    asked = f"{FUNCTION_KEY}.path={path}"
    assert "is no file NAME.py; give a Python file" in refused(asked)
    (tmp_path / "rewards.txt").write_text("def compute_score(**_): return 1")
    assert "is no file NAME.py" in refused(f"{FUNCTION_KEY}.path={tmp_path}/rewards.txt")
    assert "no package 'absent_one'" in refused(f"{FUNCTION_KEY}.path=pkg://absent_one.rewards")
    path.write_text("def compute(:")
    assert "is no Python: " in refused(asked)
    path.write_text("def compute_scores(**_): return 1")
    message = refused(asked)
    assert f"{FUNCTION_KEY}.name='compute_score'" in message
    assert "it has compute_scores" in message
    path.write_text("def compute_score(**_): return 1")
    check_reward_function(composed(asked))
    assert "are no arguments" in refused(asked, f"+{FUNCTION_KEY}.reward_kwargs=3")
    assert "are no arguments" in refused(asked, f"+{FUNCTION_KEY}.reward_kwargs=null")
    assert "one of them gives R_acc" in refused(asked, "vapo.reward.answer_style=judge")
    older = refused("custom_reward_function.path=mine.py")
    assert older.endswith(f"set {FUNCTION_KEY}.path")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder on the path with a package `graders_a`, and one without __init__.py, `graders_b`."""
    (tmp_path / "graders_a" / "deep").mkdir(parents=True)
    (tmp_path / "graders_b").mkdir()
    run = "raise RuntimeError('it is read, not run')\n"
    (tmp_path / "graders_a" / "__init__.py").write_text(f"{run}def top(**_): return 1\n")
    (tmp_path / "graders_a" / "rules.py").write_text(f"{run}def mine(**_): return 1\n")
    (tmp_path / "graders_a" / "deep" / "more.py").write_text("def mine(truth): return 1\n")
    (tmp_path / "graders_a" / "lazy.py").write_text("def __getattr__(name): return print\n")
    (tmp_path / "graders_a" / f"fast{EXTENSION_SUFFIXES[0]}").touch()
    (tmp_path / "graders_b" / "rules.py").write_text("def mine(**_): return 1\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("graders_a", "top"),
        ("graders_a.rules", "mine"),
        ("graders_a/rules", "mine"),
        ("graders_a.lazy", "mine"),
        ("graders_a.fast", "mine"),
        ("graders_b.rules", "mine"),
        ("math", "mine"),  # built in: without source
    ],
)
def test_a_function_of_a_package_is_found_without_importing_it(package, path, name):
    check_reward_function(
        composed(f"{FUNCTION_KEY}.path=pkg://{path}", f"{FUNCTION_KEY}.name={name}")
    )


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("json.nothing", "no module 'nothing' is in 'json'"),
        ("json", "pkg://json defines no such function; it has "),
        ("graders_a.rules.mine", "no module 'mine' is in 'graders_a.rules'"),
        ("graders_a.rule", "no module 'rule' is in 'graders_a'"),
        ("graders_a", "pkg://graders_a defines no such function"),
        ("graders_a.deep.more", "takes no data_source"),
        ("graders_b.nope", "no module 'nope' is in 'graders_b'"),
        ("graders_b", "is a folder without __init__.py, which has no functions"),
        ("graders_a.deep", "is a folder without __init__.py"),
        ("", "'' is no name of a module"),
    ],
)
def test_a_function_that_a_package_has_not_is_refused(package, path, said):
    message = refused(f"{FUNCTION_KEY}.path=pkg://{path}", f"{FUNCTION_KEY}.name=mine")
    assert message.startswith(FUNCTION_KEY) and said in message


@pytest.mark.parametrize(
    ("head", "arguments", "said"),
    [
        ("def f(a)", (), "takes no data_source"),
        ("def f(data_source, solution_str, ground_truth)", (), "takes no extra_info"),
        ("def f(data_source, solution_str, ground_truth, extra_info, k)", (), "needs k, too"),
        ("def f(data_source, /, **_)", (), "needs data_source, too"),
        ("async def f(*, k, **_)", (), "needs k, too"),
        ("def f(data_source, solution_str, ground_truth, extra_info=None)", ("k",), "takes no k"),
        ("def f(**_)", ("ground_truth",), "ground_truth is of the response"),
        ("f = 3 #", (), "is a constant"),
    ],
)
def test_a_function_that_its_call_does_not_fit_is_refused(tmp_path, head, arguments, said):
    path = tmp_path / "rewards.py"
    path.write_text(f"{head}: return 1\n")
    given = [f"{FUNCTION_KEY}.reward_kwargs.{name}=1" for name in arguments]
    asked = (f"{FUNCTION_KEY}.path={path}", f"{FUNCTION_KEY}.name=f", *given)
    assert said in refused(*asked)


@pytest.mark.parametrize(
    ("head", "arguments"),
    [
        ("def f(data_source, solution_str, ground_truth, extra_info=None)", ()),
        ("def f(data_source, solution_str, ground_truth, extra_info, k=2, *, m=1)", ()),
        ("def f(data_source, solution_str, ground_truth, extra_info, k)", ("k",)),
        ("def f(x=None, *_, **more)", ("k",)),
        ("@adapted\ndef f(x)", ()),
    ],
)
def test_a_function_that_its_call_fits_is_taken(tmp_path, head, arguments):
    path = tmp_path / "rewards.py"
    path.write_text(f"{head}: return 1\n")
    given = [f"{FUNCTION_KEY}.reward_kwargs.{name}=1" for name in arguments]
    check_reward_function(composed(f"{FUNCTION_KEY}.path={path}", f"{FUNCTION_KEY}.name=f", *given))


@pytest.mark.parametrize(
    "use", ["f.version = 1", "print(f)", "if __name__ == '__main__':\n    f()", "g = f"]
)
def test_a_function_that_is_used_after_its_definition_is_read_all_the_same(tmp_path, use):
    path = tmp_path / "rewards.py"
    asked = (f"{FUNCTION_KEY}.path={path}", f"{FUNCTION_KEY}.name=f")
    path.write_text(f"def f(**_):\n    return 1\n{use}\n")
    check_reward_function(composed(*asked))
    path.write_text(f"def f(a):\n    return 1\n{use}\n")
    assert "takes no data_source" in refused(*asked)
    path.write_text(f"from somewhere import g\n{use}\n")
    assert "defines no such function; it has g" in refused(*asked)


@pytest.mark.parametrize(
    ("body", "name", "line"),
    [
        ("    return {'score': 1.0, 'acc': 1, 'format': 0.0}", "format", 2),
        ("    if _:\n        return {'score': 0, **_, 'reward': 1}\n    return 1", "reward", 3),
        ("    return dict(score=0, truncated=True, **_)", "truncated", 2),
    ],
)
@pytest.mark.parametrize("head", ["def f(**_)", "async def f(**_)"])
def test_a_function_that_returns_a_name_of_this_package_is_refused(
    tmp_path, head, body, name, line
):
    path = tmp_path / "rewards.py"
    path.write_text(f"{head}:\n{body}\n")
    message = refused(f"{FUNCTION_KEY}.path={path}", f"{FUNCTION_KEY}.name=f")
    assert message.startswith(f"{FUNCTION_KEY}.name='f' in {path} returns {name!r} in line {line}")
    assert message.endswith(": rename it")


@pytest.mark.parametrize(
    "body",
    [
        "return {'score': 1.0, 'acc': 1, 'format_score': 0.0}",
        "return dict(score=0, pred='format')",
        "return {'score': {'format': 1}['format']}",
        "inner = lambda: {'format': 1}\n    return {'score': inner()['format']}",
        "def inner(): return {'format': 1}\n    return {'score': inner()['format']}",
        "parts = {'format': 1}\n    return {'score': 1, 'f': parts['format']}",
    ],
)
def test_a_name_of_this_package_that_is_not_returned_is_no_matter(tmp_path, body):
    path = tmp_path / "rewards.py"
    path.write_text(f"def f(**_):\n    {body}\n")
    check_reward_function(composed(f"{FUNCTION_KEY}.path={path}", f"{FUNCTION_KEY}.name=f"))


def test_the_page_lists_the_names_of_this_package():
    page = (ROOT / "docs" / "rewards.md").read_text()
    [row] = [line for line in page.splitlines() if line.startswith("| refused names")]
    assert set(re.findall(r"`(\w+)`", row)) == {*OWN_NAMES, "format_score"}


def test_workers_get_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = composed(f"{FUNCTION_KEY}.path=rewards.py", f"{JUDGE_KEY}.cache_dir=decisions")
    make_paths_absolute(config)
    assert config.reward.custom_reward_function.path == str(tmp_path / "rewards.py")
    assert config.vapo.reward.judge.cache_dir == str(tmp_path / "decisions")
    config = composed(f"{FUNCTION_KEY}.path=pkg://rewards")
    make_paths_absolute(config)
    assert config.reward.custom_reward_function.path == "pkg://rewards"
