"""Claims asked along a response, in the form of the project's anchors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vapo_verl.anchors.question import AnchorQuestion, bind_question
from vapo_verl.config import AnchorConfig
from vapo_verl.data.claims_column import Claim
from vapo_verl.diagnostics.probing.engine import Context, Engine, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A claim behind the first `position` tokens of a response."""

    position: int
    claim: Claim


def project_question(engine: Engine) -> AnchorQuestion:
    """The question that training asks by default, in the tokens of this model."""
    config = AnchorConfig()
    return bind_question(engine.tokenizer, config.question, config.yes_words, config.no_words)


def cycle_claims(
    positions: Sequence[int], claims: Sequence[Claim], per_cut: int, rng: np.random.Generator
) -> list[Asked]:
    """Ask `per_cut` claims at every position, going round all of them in a drawn order.

    With as many a cut as there are claims, every claim is asked everywhere. None of no claims.
    """
    if not claims:
        return []
    order = [claims[i] for i in rng.permutation(len(claims))]
    count = min(per_cut, len(claims))
    return [
        Asked(position=position, claim=order[(place * count + number) % len(order)])
        for place, position in enumerate(positions)
        for number in range(count)
    ]


def judge_claims(
    engine: Engine, asked: Sequence[tuple[Context, Asked]], question: AnchorQuestion
) -> list[Verdict]:
    """The model's verdict on each claim, behind its context."""
    probes = [context.then(question.token_ids(each.claim.text)) for context, each in asked]
    return engine.judge(probes, question)


def anchor_record(asked: Asked, verdict: Verdict) -> dict[str, Any]:
    """As the rollout files of a run hold an anchor."""
    answer = verdict.p_yes >= 0.5
    return {
        "position": asked.position,
        "claim": asked.claim.text,
        "label": asked.claim.label,
        "answer": answer,
        "correct": answer == asked.claim.label,
        "p_yes": float(f"{verdict.p_yes:.6g}"),
    }
