"""Which stages run, and how a budget of time is divided among them."""

import importlib.util

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vapo_verl.gpu_check.runner import DEFAULT_MINUTES, STAGES, allot, select_stages


@given(st.floats(min_value=0, max_value=2000), st.integers(min_value=0, max_value=len(STAGES)))
def test_a_budget_is_never_exceeded_and_every_limit_is_between_core_and_cap(budget, first):
    stages = STAGES[first:]
    given_s = allot(stages, budget)
    assert list(given_s) == [stage.name for stage in stages]
    assert sum(given_s.values()) <= budget
    for stage in stages:
        seconds = given_s[stage.name]
        assert seconds == 0 or stage.core_s <= seconds <= stage.cap_s


def test_all_stages_reach_their_caps_within_the_default_budget():
    assert allot(STAGES, 60 * DEFAULT_MINUTES) == {stage.name: stage.cap_s for stage in STAGES}


def test_five_minutes_hold_kernels_engine_and_training():
    seconds = allot(STAGES, 300)
    assert all(seconds[name] for name in ("kernels", "engine", "train"))


def test_stages_are_chosen_by_name_in_their_own_order():
    assert [stage.name for stage in select_stages(["train", "kernels"])] == ["kernels", "train"]
    assert [stage.name for stage in select_stages(["train,kernels"])] == ["kernels", "train"]
    assert select_stages(None) == list(STAGES)
    with pytest.raises(ValueError, match=r"--stages kernel is not known; use kernels "):
        select_stages(["kernel"])


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_stage_has_a_module(stage):
    assert importlib.util.find_spec(f"vapo_verl.gpu_check.{stage.name}")
