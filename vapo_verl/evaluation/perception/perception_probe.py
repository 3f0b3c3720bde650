"""Responses with their attention, and verdicts on claims along them."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vapo_verl.anchors.placement import place
from vapo_verl.evaluation.perception import PerceptionOptions
from vapo_verl.evaluation.probing.attention_summary import ratios
from vapo_verl.evaluation.probing.engine import Engine, Verdict
from vapo_verl.evaluation.probing.probe_options import ProbeOptions
from vapo_verl.evaluation.probing.respond import (
    Asked,
    Response,
    anchor_record,
    cycle_claims,
    judge_claims,
    project_question,
    respond,
    row_key,
)
from vapo_verl.evaluation.probing.rows import Row
from vapo_verl.reward.format import format_score


def perceive(
    engine: Engine, rows: Sequence[Row], options: ProbeOptions, perception: PerceptionOptions
) -> list[dict[str, Any]]:
    """A record for each row; the engine has to export attention."""
    responses = respond(engine, rows, options)
    plans = [_plan(response, options, perception) for response in responses]
    pairs = [
        (response.before(asked.position), asked)
        for response, plan in zip(responses, plans, strict=True)
        for asked in plan
    ]
    verdicts = iter(judge_claims(engine, pairs, project_question(engine)))
    return [
        _record(response, plan, [next(verdicts) for _ in plan])
        for response, plan in zip(responses, plans, strict=True)
    ]


def _plan(response: Response, options: ProbeOptions, perception: PerceptionOptions) -> list[Asked]:
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
    response: Response, plan: Sequence[Asked], verdicts: Sequence[Verdict]
) -> dict[str, Any]:
    return {
        **response.row.identity(),
        "response": response.text,
        "num_tokens": response.num_tokens,
        "reasoning": [response.reasoning.start, response.reasoning.end],
        "finish": response.completion.finish,
        **asdict(response.grade),
        "format": format_score(response.text),
        "attention": ratios(response.completion.attention),
        "anchors": [anchor_record(*pair) for pair in zip(plan, verdicts, strict=True)],
        "probe_tokens": sum(verdict.num_prompt_tokens for verdict in verdicts),
        "cached_tokens": sum(verdict.num_cached_tokens for verdict in verdicts),
    }
