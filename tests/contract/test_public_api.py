"""Names that users import or pass: they stay where they are, with the arguments that they have."""

import importlib
import inspect

import pytest

from vapo_verl.config import VapoConfig

FUNCTIONS = {
    "vapo_verl.reward.perception.perception_score": (
        *("correct", "positions", "length", "late_emphasis", "chance_corrected"),
    ),
    "vapo_verl.anchors.plan_anchors": ("pieces", "claims"),
    "vapo_verl.advantage.vapo.vapo_advantage": (
        *("rewards", "group_ids", "response_mask", "visual_attention"),
    ),
    "vapo_verl.attention.engine_args": ("layers", "per_layer"),
    "vapo_verl.attention.visual_attention": (),
    "vapo_verl.data.images.load_image": ("entry",),
}
"""Dotted name -> its first parameters."""
KEYS = (
    "seed",
    *(f"anchors.{name}" for name in ("num_anchors", "placement", "min_gap", "gate", "pairing")),
    *(f"anchors.{name}" for name in ("question", "yes_words", "no_words")),
    *(f"reward.{name}" for name in ("accuracy_weight", "format_weight", "perception_weight")),
    *(f"reward.{name}" for name in ("late_emphasis", "chance_corrected", "soft")),
    "reward.perception_source",
    *(f"attention.{name}" for name in ("enabled", "layers", "per_layer")),
    *(f"advantage.{name}" for name in ("attention_coef", "attention_mode", "normalize_by_std")),
    "advantage.num_bins",
    *(f"rollout.{name}" for name in ("timeout_s", "max_failed_fraction", "restart_servers")),
    "logging.console",
)
"""Settings below ``vapo.``."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_where_it_was(name):
    module, _, function = name.rpartition(".")
    found = list(inspect.signature(getattr(importlib.import_module(module), function)).parameters)
    assert tuple(found[: len(FUNCTIONS[name])]) == FUNCTIONS[name]


@pytest.mark.parametrize("key", KEYS)
def test_a_setting_is_where_it_was(key):
    value = VapoConfig()
    for part in key.split("."):
        value = getattr(value, part)
