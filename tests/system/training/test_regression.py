"""The numbers of the CPU recipes: the smoke recipe's to the bit, all of them within bounds."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.smoke import Smoke, metrics
from tests.system.training.regression import (
    FILE,
    NAMES,
    NUM_ROWS,
    OVERRIDES,
    TOKENS,
    differences,
    machine_kind,
    values_of,
)
from vapo_verl.digits.build import DigitsConfig, write_dataset

LEARNING = {
    "vapo/reward/accuracy": (0.2, 0.9),
    "vapo/reward/format": (0.9, 1.0),
    "vapo/anchors/accuracy": (0.5, 1.0),
    "vapo/anchors/yes_rate": (0.2, 0.9),
    "actor/kl_loss": (0.0, 0.05),
    "actor/grad_norm": (0.01, 10.0),
    "actor/pg_clipfrac": (0.0, 0.2),
}
ON_POLICY = LEARNING | {
    "vapo/rollout/logprob_diff_mean": (0.0, 1e-4),
    "vapo/rollout/prob_ratio_mean": (0.9999, 1.0001),
    "training/rollout_actor_probs_pearson_corr": (0.9999, 1.0001),
}
GATES = {
    # recipe -> metric -> least and most, in every one of its first steps
    "smoke": ON_POLICY,
    "smoke_lora": ON_POLICY,
    "smoke_async": ON_POLICY  # responses of older weights
    | {
        "vapo/rollout/logprob_diff_mean": (0.0, 0.05),
        "vapo/rollout/prob_ratio_mean": (0.99, 1.01),
        "training/rollout_actor_probs_pearson_corr": (0.98, 1.0001),
    },
    "study": LEARNING | {"vapo/attention/mean": (0.02, 0.9)},  # it takes the engine's log probs
}
DATA = {"study": {"grids": ("3x3",), "questions": "parts"}}
"""Of a recipe, where it is not the digits world as it is."""


@pytest.fixture(scope="module")
def run_of(recorded, tmp_path_factory) -> Callable[[str], Path]:
    """`run_of(recipe)` -> the folder of its first steps."""

    def run(recipe: str) -> Path:
        if recipe == "smoke":
            return recorded.run
        root = tmp_path_factory.mktemp(recipe)
        config = DigitsConfig(**NUM_ROWS, **DATA.get(recipe, {}))
        data = write_dataset(root / "data" / "digits", config)
        files = [f"data.{split}_files={data[split]}" for split in ("train", "val")]
        return Smoke(root, data, recipe).run(recipe, *OVERRIDES, *files)

    return run


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_losses_and_rewards_are_those_of_the_file(recorded):
    """Saving the rollouts, as the run does, changes none of them."""
    file = json.loads(FILE.read_text())
    assert tuple(file["overrides"]) == OVERRIDES
    exact = file["machine"] == machine_kind()
    found = differences(values_of(recorded.run), file["steps"], exact=exact)
    assert not found, "\n".join(
        [f"compared {'to the bit' if exact else 'within float noise'}:", *found]
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("recipe", GATES)
def test_the_first_steps_of_a_recipe_are_within_its_bounds(run_of, recipe):
    steps = metrics(run_of(recipe))
    assert sorted(steps) == [1, 2, 3]
    for step, values in steps.items():
        for name, (low, high) in GATES[recipe].items():
            assert low <= values[name] <= high, f"step {step}: {name}={values[name]}"


STEPS = {"1": {"actor/pg_loss": 0.5, "vapo/reward/total": 1.0, TOKENS: "abc"}}


def changed(**values):
    steps = copy.deepcopy(STEPS)
    steps["1"].update(values)
    return steps


def test_on_the_same_machine_the_last_bit_counts():
    assert differences(changed(), STEPS, exact=True) == []
    next_float = changed(**{"actor/pg_loss": math.nextafter(0.5, 1)})
    [line] = differences(next_float, STEPS, exact=True)
    assert line == "step 1, actor/pg_loss: 0.5000000000000001, expected 0.5"
    assert len(differences(changed(**{TOKENS: "abd"}), STEPS, exact=True)) == 1


def test_elsewhere_noise_passes_and_a_change_does_not():
    close = changed(**{"actor/pg_loss": 0.5004, TOKENS: "abd"})
    assert differences(close, STEPS, exact=False) == []
    assert len(differences(changed(**{"actor/pg_loss": 0.51}), STEPS, exact=False)) == 1
    assert len(differences(changed(**{"actor/pg_loss": None}), STEPS, exact=False)) == 1
    assert len(differences(changed(**{"actor/pg_loss": float("nan")}), STEPS, exact=False)) == 1
    assert differences({"1": {}, "2": {}}, STEPS, exact=False)
    missing = {"1": {"actor/pg_loss": 0.5, TOKENS: "abc"}}
    assert len(differences(missing, STEPS, exact=False)) == 1


def test_the_file_says_which_kind_of_machine_made_it():
    file = json.loads(FILE.read_text())
    assert set(file["machine"]) == set(machine_kind())
    assert sorted(file["steps"]) == ["1", "2", "3"]
    for values in file["steps"].values():
        assert set(values) == {*NAMES, TOKENS}
