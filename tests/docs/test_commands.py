"""Commands of the pages that start a run compose, and no check of their settings refuses them."""

import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.paths import ROOT
from vapo_verl import preflight
from vapo_verl.config import AdvantageConfig, MethodConfig
from vapo_verl.hydra_config import compose_recipe
from vapo_verl.methods import StepTokens, method_of, short_name
from vapo_verl.settings import check_settings

PAGES = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
_BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)
_FILE = re.compile(r"```python\n# (my_package/\w+\.py)\n(.*?)```", re.DOTALL)
_NOT_OF_THE_CONFIG = {"...", "key=value", "--json"}
ANY_RECIPE = "smoke"
"""For `+recipe=NAME`."""


def commands() -> list[tuple[str, str, list[str]]]:
    """Page, recipe and overrides of every command in a block."""
    found = []
    for page in sorted(PAGES):
        lines = "\n".join(_BLOCK.findall(page.read_text())).replace("\\\n", " ").splitlines()
        for line in lines:
            if "+recipe=" not in line or " -m +recipe" in line:  # a sweep is several runs
                continue
            words = shlex.split(line, comments=True)
            place = next(i for i, word in enumerate(words) if word.startswith("+recipe="))
            recipe = words[place].removeprefix("+recipe=").replace("NAME", ANY_RECIPE)
            overrides = [w for w in words[place + 1 :] if w not in _NOT_OF_THE_CONFIG]
            found.append((page.name, recipe, overrides))
    return found


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """What the commands name, the files of extending.md, a machine with flash-attn and cupy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight, "lacks_flash_attention", lambda _: False)
    monkeypatch.setattr(preflight, "lacks_cupy", lambda: False)
    Path("my_reward.py").write_text("def graded(*_, **__): return 1.0\n")
    Path("my_package").mkdir()
    Path("my_package/__init__.py").touch()
    for name, code in _FILE.findall((ROOT / "docs/extending.md").read_text()):
        Path(name).write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


@pytest.mark.parametrize(("page", "recipe", "overrides"), commands())
def test_a_command_of_a_page_is_accepted(page, recipe, overrides):
    config = compose_recipe(recipe, overrides)
    check_settings(config)
    for check in preflight.CHECKS:
        check.run(config)


def test_pages_have_commands():
    assert len(commands()) > 20


@pytest.fixture
def credit(monkeypatch):
    """The page's `my_package.credit`, in registries that are this test's."""
    from verl.trainer.ppo import core_algos

    for name in ("ADV_ESTIMATOR_REGISTRY", "POLICY_LOSS_REGISTRY"):
        monkeypatch.setattr(core_algos, name, dict(getattr(core_algos, name)))
    import_module("my_package.credit")
    return core_algos


def test_the_pages_estimator_weighs_tokens_by_attention(credit):
    from vapo_verl.advantage.estimator import batch_inputs

    nan, mask = float("nan"), torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]])
    rewards = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    attention = torch.tensor([[0.3, 0.1, 0.9], [0.2, nan, 0.2], [0.5, 0.5, 0.5]])
    with batch_inputs(AdvantageConfig(), attention):
        advantages, _ = credit.get_adv_estimator_fn("looking")(
            token_level_rewards=rewards,
            response_mask=mask,
            index=np.array(["a", "a", "pad"], dtype=object),
            config=OmegaConf.create({"looking_strength": 0.5}),
        )
    # (1 - 0.5) / 0.7071 = 0.7071; attention 0.3 and 0.1 around 0.2: weights 1.25 and 0.75
    expected = [[0.8839, 0.5303, 0.0], [-0.7071, -0.7071, -0.7071], [0.0, 0.0, 0.0]]
    torch.testing.assert_close(advantages, torch.tensor(expected), atol=1e-4, rtol=0)


def test_the_pages_loss_is_the_ratio_times_the_advantage(credit):
    from types import SimpleNamespace

    loss, metrics = credit.get_policy_loss_fn("unclipped")(
        old_log_prob=torch.zeros(1, 2),
        log_prob=torch.tensor([[0.0, 2.0]]).log1p(),
        advantages=torch.tensor([[1.0, -1.0]]),
        response_mask=torch.ones(1, 2),
        loss_agg_mode="token-mean",
        config=SimpleNamespace(global_batch_info={}),
        rollout_is_weights=None,
    )
    assert loss.item() == pytest.approx((-1 * 1 + 1 * 3) / 2) and metrics == {}


def test_the_pages_method_counts_late_tokens():
    name = "my_package.method.LateTokens"
    method = method_of(MethodConfig(name=name, options={"start": 0.5}))
    tokens = StepTokens(
        group_ids=["a", "a"],
        response_mask=torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool(),
        visual_attention=torch.zeros(2, 4),
        old_log_probs=torch.zeros(2, 4),
        masked_log_probs=None,
    )
    weights, metrics = method.token_weights(tokens)
    assert weights.tolist() == [[0, 0, 1, 1], [0, 1, 0, 0]]
    assert metrics == {f"vapo/{short_name(name)}/fraction": 0.5}


def test_the_pages_reward_function_compares_the_answer():
    exact = import_module("my_package.reward").exact
    text = "<think>2 + 5</think> \\boxed{ 7 }"
    assert exact(solution_str=text, ground_truth=7, data_source="", extra_info={}) == 1.0
    assert exact(solution_str="seven", ground_truth=7, data_source="", extra_info={}) == 0.0
