"""Settings: defaults, types, limits, and errors that name key, value and fix."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vapo_verl.config import VapoConfig, vapo_config


def test_nothing_given_is_the_defaults():
    assert vapo_config(None) == VapoConfig() == vapo_config({})


def test_whole_numbers_and_lists_are_accepted_where_floats_and_tuples_stand():
    config = vapo_config({"reward": {"late_emphasis": 2}, "anchors": {"yes_words": [" Ja"]}})
    assert config.reward.late_emphasis == 2.0
    assert config.anchors.yes_words == (" Ja",)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"anchor": {}}, r"vapo\.anchor is not a setting; use one of .*anchors"),
        ({"anchors": {"num": 3}}, r"vapo\.anchors\.num is not a setting"),
        ({"anchors": 3}, r"vapo\.anchors=3 is not a group"),
        ({"anchors": {"num_anchors": "20"}}, r"num_anchors='20' is a str; set a int"),
        ({"anchors": {"num_anchors": True}}, r"num_anchors=True is a bool; set a int"),
        ({"anchors": {"num_anchors": -1}}, r"num_anchors=-1 is too small; set 0 or more"),
        ({"anchors": {"placement": "middle"}}, r"placement='middle' .* use one of random"),
        ({"anchors": {"gate": "never"}}, r"gate='never'"),
        ({"anchors": {"yes_words": "Yes"}}, r"yes_words='Yes' is not a list"),
        ({"anchors": {"question": "{claim} True? "}}, r"not end with white space"),
        ({"anchors": {"question": "True?"}}, r"must hold \{claim\} once"),
        ({"reward": {"perception_weight": -0.1}}, r"perception_weight=-0.1 is too small"),
        ({"advantage": {"attention_coef": 1.0}}, r"attention_coef=1.0 is outside \[0, 1\)"),
        ({"advantage": {"attention_coef": 0.3}}, r"vapo\.attention\.enabled=False"),
        ({"advantage": {"normalization": "none"}}, r"normalization='none' .* one of total, decoup"),
        (
            {"advantage": {"normalization": "decoupled"}, "reward": {"perception_source": "none"}},
            r"normalization=decoupled .*perception_source=none .* measures none; set total",
        ),
        (
            {"advantage": {"normalization": "decoupled"}, "anchors": {"num_anchors": 0}},
            r"normalization=decoupled .*num_anchors=0 measures none; set total",
        ),
        ({"reward": {"perception_source": "attention"}}, r"vapo\.attention\.enabled=False"),
        *(
            (
                {
                    "reward": {"perception_source": "attention", name: True},
                    "attention": {"enabled": True},
                },
                rf"vapo\.reward\.{name}=True .*perception_source=attention .*set {name}=false",
            )
            for name in ("chance_corrected", "soft")
        ),
        ({"reward": {"answer_style": "jury"}}, r"answer_style='jury' .* one of .*text, judge"),
        ({"reward": {"judge": {"key": "x"}}}, r"vapo\.reward\.judge\.key is not a setting"),
        ({"reward": {"judge": {"max_concurrency": 0}}}, r"max_concurrency=0 is too small; set 1"),
        ({"reward": {"judge": {"timeout_s": math.nan}}}, r"timeout_s=nan: set a finite number"),
        ({"reward": {"judge": {"temperature": -1.0}}}, r"judge.temperature=-1.0"),
        ({"reward": {"judge": {"max_tokens": None}}}, r"max_tokens=None is a NoneType; set a int"),
        (
            {"debug": {"train_only": "a", "rollout_only": True}},
            r"train_only='a' generates nothing, and vapo\.debug\.rollout_only=True needs",
        ),
        ({"debug": {"train_only": "a", "save_rollouts": "b"}}, r"save_rollouts needs rollouts"),
        (
            {"debug": {"train_only": "a"}, "keep_best": "val/digits/accuracy"},
            r"cannot validate, and vapo\.keep_best=val/digits/accuracy",
        ),
        ({"replay_poll_s": 0.0}, r"replay_poll_s=0.0"),
        ({"replay_poll_s": math.inf}, r"replay_poll_s=inf: set seconds above 0, up to 60"),
        ({"replay_poll_s": math.nan}, r"replay_poll_s=nan"),
        ({"reward": {"late_emphasis": math.inf}}, r"vapo\.reward\.late_emphasis=inf: set a finite"),
        ({"reward": {"late_emphasis": -math.inf}}, r"late_emphasis=-inf: set a finite number"),
        ({"reward": {"late_emphasis": math.nan}}, r"late_emphasis=nan: set a finite number"),
        ({"reward": {"late_emphasis": 10**400}}, r"late_emphasis is far out of range"),
        ({"reward": {"accuracy_weight": math.nan}}, r"accuracy_weight=nan: set a finite number"),
        ({"reward": {"format_weight": math.inf}}, r"format_weight=inf: set a finite number"),
        ({"reward": {"perception_weight": math.nan}}, r"perception_weight=nan: set a finite"),
        ({"advantage": {"attention_coef": math.nan}}, r"attention_coef=nan"),
        ({"anchors": {"num_anchors": 10**6}}, r"num_anchors=1000000 is too large; set 10000"),
        ({"anchors": {"min_gap": 10**30}}, r"min_gap is far out of range; set at most"),
        ({"anchors": {"num_anchors": 2.5}}, r"num_anchors=2.5 is a float; set a int"),
        ({"anchors": {"yes_words": []}}, r"yes_words holds no word"),
        ({"anchors": {"yes_words": [" Yes", ""]}}, r"yes_words holds no word"),
        ({"anchors": {"no_words": [1]}}, r"no_words: 1 is a int; set a str"),
        ({"attention": {"layers": [1.5]}}, r"layers: 1.5 is a float; set a int"),
        ({"attention": {"layers": [True]}}, r"layers: True is a bool; set a int"),
        ({"attention": {"layers": "1,2"}}, r"layers='1,2' is not a list; write it as \[a, b\]"),
        ({"advantage": {"num_bins": 10**8}}, r"num_bins=100000000 is too large"),
        ({"attention": {"max_spans": 0}}, r"vapo\.attention\.max_spans=0 is too small"),
        ({"attention": {"max_spans": 4097}}, r"vapo\.attention\.max_spans=4097 is too large"),
        ({"attention": {"max_spans": "many"}}, r"vapo\.attention\.max_spans='many' is a str"),
        ({"accept_changes": "data.seed"}, r"accept_changes='data.seed' is not a list"),
        ({"seed": -1}, r"vapo\.seed=-1 is too small"),
        ({"rollout": {"timeout_s": 5.0}}, r"timeout_s=5.0: set 10 or more seconds"),
        ({"rollout": {"timeout_s": math.nan}}, r"timeout_s=nan: set 10 or more"),
        ({"rollout": {"timeout_s": math.inf}}, r"timeout_s=inf: set 10 or more"),
        ({"rollout": {"max_failed_fraction": 1.5}}, r"max_failed_fraction=1.5 is outside \[0, 1\]"),
        ({"rollout": {"max_failed_fraction": math.nan}}, r"max_failed_fraction=nan is outside"),
        ({"rollout": {"restart_servers": "yes"}}, r"restart_servers"),
    ],
)
def test_what_cannot_work_is_refused(node, message):
    with pytest.raises(ValueError, match=message):
        vapo_config(node)


@given(st.floats(0, 1, exclude_max=True))
def test_every_coefficient_below_one_is_accepted_with_attention(coefficient):
    node = {"attention": {"enabled": True}, "advantage": {"attention_coef": coefficient}}
    assert vapo_config(node).advantage.attention_coef == coefficient


def test_probes_run_for_the_reward_or_for_diagnostics():
    assert vapo_config({}).probes_claims
    assert not vapo_config({"anchors": {"num_anchors": 0}}).probes_claims
    assert not vapo_config({"reward": {"perception_source": "none"}}).probes_claims
    assert vapo_config(
        {"reward": {"perception_source": "none"}, "anchors": {"gate": "always"}}
    ).probes_claims


@pytest.mark.parametrize(("given", "kept"), [(True, "true"), (False, "false"), ("auto", "auto")])
def test_true_and_false_of_yaml_are_words_of_the_think_tokens(given, kept):
    assert vapo_config({"data": {"plain_think_tokens": given}}).data.plain_think_tokens == kept
    with pytest.raises(
        ValueError, match=r"vapo\.data\.plain_think_tokens='maybe'.*auto, true, false"
    ):
        vapo_config({"data": {"plain_think_tokens": "maybe"}})
    with pytest.raises(ValueError, match=r"vapo\.data\.control_tokens=True is a bool"):
        vapo_config({"data": {"control_tokens": True}})
