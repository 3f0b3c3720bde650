"""From row to score: an answerer that knows the scene earns 1, its opposite 0, always-yes half.

The claims, labels, tokenizer, planning, probing and scoring are the real ones; only the eyes behind
the answer are replaced. Handing labels out in another order than claims, as the released code does,
breaks these figures, which the mutant at the end shows.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from vapo_verl.anchors import (
    ProbeReply,
    Probes,
    SampleKey,
    bind_question,
    plan_anchors,
    probe_anchors,
)
from vapo_verl.config import PLACEMENTS, AnchorConfig, RewardConfig
from vapo_verl.data.claims_column import Claim, read_claims
from vapo_verl.digits.build import DigitsConfig, build_split
from vapo_verl.digits.claims import judge
from vapo_verl.digits.scene import Scene
from vapo_verl.rollout.sample import anchored_perception

RESPONSE = (
    "<think>" + " ".join(f"top left is red {i % 10}." for i in range(30)) + "</think>\\boxed{3}"
)
Answer = Callable[[str, Scene], bool]


@pytest.fixture
def tokenizer(packaged_tokenizer):
    return packaged_tokenizer


@pytest.fixture(scope="module")
def rows():
    return build_split(DigitsConfig(val=6, grids=("2x2", "2x3", "3x3")), "val")


async def score(tokenizer, row, answer: Answer, *, placement="random", seed=0, plan=plan_anchors):
    """Perception reward of a fixed response when ``answer`` judges the claims."""
    settings = AnchorConfig(placement=placement)
    question = bind_question(tokenizer, settings.question, settings.yes_words, settings.no_words)
    scene = Scene.from_json(row["extra_info"]["scene"])
    response_ids = tokenizer.encode(RESPONSE, add_special_tokens=False)
    key = SampleKey(seed=seed, step=1, prompt_uid=str(row["extra_info"]["index"]), sample=0)

    def reply(ids: list[int]) -> ProbeReply:
        claim = tokenizer.decode(ids).rpartition("<anchor>")[2].partition(" Is this claim")[0]
        yes = answer(claim, scene)
        return ProbeReply(token_id=question.yes_id if yes else question.no_id, logprob=-0.1)

    async def ask(probes: Probes) -> list[ProbeReply]:
        return [reply(ids) for ids in probes.prompts()]

    anchors = plan(
        [tokenizer.decode([i]) for i in response_ids],
        read_claims(row["claims"]),
        num_anchors=settings.num_anchors,
        placement=placement,
        min_gap=settings.min_gap,
        rng=key.generator("anchors"),
    )
    results = await probe_anchors(ask, question, anchors, [1, 2], response_ids)
    return anchored_perception(results, len(response_ids), RewardConfig())


def says_yes(_claim: str, _scene: Scene) -> bool:
    return True


def denies(claim: str, scene: Scene) -> bool:
    return not judge(claim, scene)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("seed", range(3))
async def test_an_oracle_sees_everything_and_its_negation_nothing(tokenizer, rows, placement, seed):
    ask = partial(score, tokenizer, placement=placement, seed=seed)
    assert [await ask(row, judge) for row in rows] == [1.0] * len(rows)
    assert [await ask(row, denies) for row in rows] == [0.0] * len(rows)


async def test_always_yes_earns_about_half(tokenizer, rows):
    scores = [await score(tokenizer, row, says_yes, seed=seed) for row in rows for seed in range(5)]
    # 20 claims, 10 of them true, all asked: only the late emphasis moves a score from 0.5
    assert np.mean(scores) == pytest.approx(0.5, abs=0.05)


def plan_with_labels_in_file_order(pieces, claims, **settings):
    """The released code's fault: claims are shuffled, labels are read in file order."""
    order = settings["rng"].permutation(len(claims))
    apart = [Claim(claims[i].text, claim.label) for i, claim in zip(order, claims, strict=True)]
    return plan_anchors(pieces, apart, **settings)


async def test_the_permuted_label_mutant_is_caught(tokenizer, rows):
    scores = [
        await score(tokenizer, row, judge, seed=seed, plan=plan_with_labels_in_file_order)
        for row in rows
        for seed in range(3)
    ]
    assert max(scores) < 1.0
    assert np.mean(scores) == pytest.approx(0.5, abs=0.1)
