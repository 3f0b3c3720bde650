import json
from dataclasses import replace

import pytest
import torch

from vapo_verl.digits.model import model_dir
from vapo_verl.digits.model.recipe import PRESETS, first_losses
from vapo_verl.digits.model.samples import IGNORED
from vapo_verl.digits.model.warmup import losses


def test_losses_are_means_over_responses_and_over_answers_by_hand():
    # uniform logits over 4 ids cost log 4; the last prediction is made certain and costs nothing
    logits = torch.zeros(1, 5, 4)
    logits[0, 3, 2] = 100.0
    labels = torch.tensor([[IGNORED, 0, 1, 3, 2]])
    response, answer = losses(logits, labels, answers=torch.tensor([2, 3]))
    # response ids 0 and 1: log 4 each; answers 3 and 2: log 4 and 0
    assert response.item() == pytest.approx(1.3863, abs=1e-4)
    assert answer.item() == pytest.approx(1.3863 / 2, abs=1e-4)


def check_losses(ours, recorded):
    assert ours["tower"] == pytest.approx(recorded["tower"], rel=1e-2)
    for mine, theirs in zip(ours["warm_up"], recorded["warm_up"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-2)


@pytest.mark.parametrize("name", PRESETS)
def test_first_steps_are_those_on_record(name):
    torch.set_num_threads(2)
    recorded = json.loads((model_dir(name) / "first_steps.json").read_text())
    config = replace(PRESETS[name], seed=recorded["seed"])
    check_losses(first_losses(config, len(recorded["tower"])), recorded)


def test_questions_begin_behind_the_parts_before_them():
    assert PRESETS["digits"].warmup.steps_before_questions == 600
    assert PRESETS["long_digits"].warmup.steps_before_questions == 0
