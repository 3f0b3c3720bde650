"""Does the perception reward reach the policy? From responses to advantages, without a model.

Responses to a prompt differ in whether they check cells that their answer does not need. Ideal
predictions of the world `forgetful_digits` follow what they have stated, so that a check must earn
an advantage. Each planted fault takes that away, and would be seen.
"""

import random
from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pytest
import torch

from tests.sample_records import sample_record
from vapo_verl.advantage.vapo import vapo_advantage
from vapo_verl.anchors import AnchorResult
from vapo_verl.anchors.plan import SampleKey, plan_anchors
from vapo_verl.anchors.signal import ProbedResponse, perception_spread
from vapo_verl.config import AdvantageConfig, AnchorConfig, RewardConfig, VapoConfig
from vapo_verl.data.claims_column import Claim
from vapo_verl.digits.claims import all_claims, sample_claims
from vapo_verl.digits.model.forgetful import CLAIM_KINDS, STRONG, belief, believed, solution
from vapo_verl.digits.model.samples import encode, piece
from vapo_verl.digits.questions import sample_question
from vapo_verl.digits.scene import sample_scene, scan_pool
from vapo_verl.reward import BOX, THINK_END, THINK_START
from vapo_verl.reward.components import compose_reward
from vapo_verl.rollout.sample import anchored_perception
from vapo_verl.trainer.metrics import reward_parts

NUM_PROMPTS, GROUP = 40, 5
PAID = VapoConfig(
    anchors=AnchorConfig(num_anchors=20, min_gap=3), reward=RewardConfig(perception_weight=1.0)
)


@cache
def group(number, tokenizer):
    """A scene, its claims, and the tokens of responses, of which every second one checks."""
    rng = random.Random(number)
    scene = sample_scene(rng, scan_pool("train"), 3, 3)
    question = sample_question(rng, scene, "lines")
    claims = [
        Claim(text=item.claim.text, label=item.label)
        for item in sample_claims(rng, scene, kinds=CLAIM_KINDS)
    ]
    responses = []
    for sample in range(GROUP):
        said = solution(rng, scene, question, guess=False, check=float(sample % 2))
        text = f"{THINK_START}{' '.join(said)}{THINK_END}{BOX}{{{question.answer}}}"
        responses.append([piece(tokenizer, token) for token in encode(tokenizer, text)])
    return scene, claims, responses


def no_fault(values, rng):
    return values


def permuted_labels(claims, rng):
    """The released code's: labels in the order of the file, claims in another."""
    labels = rng.permutation([claim.label for claim in claims])
    return [replace(c, label=bool(label)) for c, label in zip(claims, labels, strict=True)]


def unpaired(anchors, rng):
    """Every claim is judged by the label of the next one."""
    labels = [anchor.label for anchor in anchors]
    return [replace(a, label=x) for a, x in zip(anchors, labels[1:] + labels[:1], strict=True)]


def records(tokenizer, settings, *, correct=range(GROUP), of_claims=no_fault, of_anchors=no_fault):
    """A record of each response, its predictions those of the world."""
    rng, found = np.random.default_rng(0), []
    paired = settings.anchors.pairing == "group"
    for number in range(NUM_PROMPTS):
        scene, claims, responses = group(number, tokenizer)
        known = {claim.text: claim for claim in all_claims(scene)}
        asked = of_claims(claims, rng)
        for sample, pieces in enumerate(responses):
            accuracy = float(sample in correct)
            key = SampleKey(seed=0, step=1, prompt_uid=str(number), sample=sample)
            draws = key.group_generator if paired else key.generator
            anchors = plan_anchors(
                pieces,
                asked,
                num_anchors=settings.anchors.num_anchors,
                placement=settings.anchors.placement,
                min_gap=settings.anchors.min_gap,
                rng=draws("anchors"),
                paired=paired,
            )
            results = []
            if accuracy == 1 or settings.anchors.gate != "correct":
                for anchor in of_anchors(anchors, rng):
                    text = "".join(pieces[: anchor.position])
                    seen = belief(scene, text, anchor.position, STRONG)
                    said = believed(known[anchor.claim], seen)
                    results.append(
                        AnchorResult(
                            anchor=anchor,
                            answer=said,
                            p_yes=float(said),
                            num_prompt_tokens=1,
                            num_cached_tokens=0,
                        )
                    )
            reward = compose_reward(
                accuracy,
                1.0,
                anchored_perception(results, len(pieces), settings.reward) if results else 0.0,
                accuracy_weight=settings.reward.accuracy_weight,
                format_weight=settings.reward.format_weight,
                perception_weight=settings.reward.perception_weight,
                gate=settings.anchors.gate,
            )
            found.append(
                sample_record(*results, reward=asdict(reward), response_length=len(pieces))
            )
    return found


def pays(tokenizer, settings=PAID, *, among=slice(GROUP), **changes):
    """Mean advantage of a response that checks, less that of one that does not."""
    of = records(tokenizer, settings, **changes)
    rewards = torch.tensor([record.reward.total for record in of])
    groups = [number for number in range(NUM_PROMPTS) for _ in range(GROUP)]
    advantages = vapo_advantage(
        rewards,
        groups,
        torch.ones(len(of), 1),
        parts=reward_parts(of, settings),
        normalization=settings.advantage.normalization,
    )[:, 0].view(NUM_PROMPTS, GROUP)[:, among]
    return float(advantages[:, 1::2].mean() - advantages[:, ::2].mean())


@pytest.mark.parametrize("normalization", ["total", "decoupled"])
def test_a_check_earns_an_advantage(tokenizer, normalization):
    # two of five responses check: if nothing else differed, they would be 1.83 deviations ahead
    settings = replace(PAID, advantage=AdvantageConfig(normalization=normalization))
    assert pays(tokenizer, settings) > 1.2


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"of_claims": permuted_labels}, id="labels permuted"),
        pytest.param({"of_anchors": unpaired}, id="claim and label unpaired"),
        pytest.param({"correct": ()}, id="the gate never opens"),
    ],
)
@pytest.mark.parametrize("normalization", ["total", "decoupled"])
def test_a_fault_takes_it_away(tokenizer, fault, normalization):
    settings = replace(PAID, advantage=AdvantageConfig(normalization=normalization))
    assert abs(pays(tokenizer, settings, **fault)) < 0.2


def test_an_incorrect_sibling_drowns_it_unless_perception_is_normalised_by_itself(tokenizer):
    def found(normalization, weight):
        settings = replace(
            PAID,
            advantage=AdvantageConfig(normalization=normalization),
            reward=RewardConfig(perception_weight=weight),
        )
        return pays(tokenizer, settings, correct=range(4), among=slice(4))

    assert 0 < found("total", 0.1) < 0.1
    assert found("decoupled", 1.0) > 1.2
    assert found("decoupled", 0.1) == pytest.approx(0.1 * found("decoupled", 1.0), abs=1e-4)


def test_without_its_weight_perception_earns_nothing(tokenizer):
    settings = replace(PAID, reward=RewardConfig(perception_weight=0.0))
    assert pays(tokenizer, settings) == 0.0


def test_paired_draws_leave_more_of_the_spread_to_the_response(tokenizer):
    """With K = 5, and draws that are not paired, which claims were drawn is most of R_perc."""

    def found(pairing):
        settings = replace(PAID, anchors=replace(PAID.anchors, num_anchors=5, pairing=pairing))
        responses = [
            ProbedResponse(
                group_id=number // GROUP,
                results=record.anchors,
                length=record.response_length,
                num_claims=record.num_claims,
            )
            for number, record in enumerate(records(tokenizer, settings))
        ]
        return perception_spread(
            responses, settings.reward.late_emphasis, paired=pairing == "group"
        )

    independent, group_draws = found("independent"), found("group")
    assert group_draws.spread < 0.8 * independent.spread
    assert group_draws.draw_fraction < independent.draw_fraction
