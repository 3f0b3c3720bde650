"""Responses with their attention, and predictions on claims along them."""

from collections.abc import Sequence
from typing import Any

from vapo_verl.anchors.placement import place
from vapo_verl.evaluation.perception import PerceptionOptions
from vapo_verl.evaluation.probing.attention_summary import ratios
from vapo_verl.evaluation.probing.engine import Engine, Prediction
from vapo_verl.evaluation.probing.probe_options import ProbeOptions
from vapo_verl.evaluation.probing.respond import (
    ClaimProbe,
    Response,
    anchor_record,
    bound_question,
    cycle_claims,
    predict_claims,
    respond,
    row_key,
)
from vapo_verl.evaluation.probing.rows import Row
from vapo_verl.reward.components import NUM_LAST_TOKENS, format_score


def perceive(
    engine: Engine, rows: Sequence[Row], options: ProbeOptions, perception: PerceptionOptions
) -> list[dict[str, Any]]:
    """A record for each row; the engine has to export attention."""
    responses = respond(engine, rows, options)
    plans = [_plan(response, options, perception) for response in responses]
    probes = [
        (response.before(probe.position), probe)
        for response, plan in zip(responses, plans, strict=True)
        for probe in plan
    ]
    predictions = iter(predict_claims(engine, probes, bound_question(engine, perception.asked)))
    return [
        _record(
            response,
            plan,
            [next(predictions) for _ in plan],
            engine.decode(response.prompt.ids[-NUM_LAST_TOKENS:]),
        )
        for response, plan in zip(responses, plans, strict=True)
    ]


def _plan(
    response: Response, options: ProbeOptions, perception: PerceptionOptions
) -> list[ClaimProbe]:
    rng = row_key(response.row, options).generator("claims")
    cuts = place(
        [position for position in response.reasoning.boundaries if position > 0],
        perception.num_cuts,
        end=response.reasoning.end,
        placement="uniform",
        min_gap=1,
        rng=rng,
    )
    positions = [0, *(position for position, own_boundary in cuts if own_boundary)]
    return cycle_claims(positions, response.row.claims, perception.claims_per_cut, rng)


def _record(
    response: Response,
    plan: Sequence[ClaimProbe],
    predictions: Sequence[Prediction],
    prompt_end: str,
) -> dict[str, Any]:
    return {
        **response.record(),
        "format": format_score(response.text, prompt_end),
        "attention": ratios(response.completion.attention),
        "anchors": [anchor_record(*pair) for pair in zip(plan, predictions, strict=True)],
        "probe_tokens": sum(prediction.num_prompt_tokens for prediction in predictions),
        "cached_tokens": sum(prediction.num_cached_tokens for prediction in predictions),
    }
