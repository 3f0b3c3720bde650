"""The trainer's process, before it starts any worker."""

import json

import pytest

from tests.composing import compose_once
from vapo_verl.preflight import InputError
from vapo_verl.trainer.task_runner import VapoTaskRunner


def test_a_model_that_only_its_node_can_read_is_refused_before_the_workers(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internvl_chat"}))
    config = compose_once("smoke", [f"actor_rollout_ref.model.path={tmp_path}"])
    with pytest.raises(InputError, match=r"model\.path=.* is a 'internvl_chat' model"):
        VapoTaskRunner().run(config)
