"""Forces an answer at cuts of a response's reasoning."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vapo_verl.evaluation.early_decision import EarlyOptions
from vapo_verl.evaluation.early_decision.records import Cut
from vapo_verl.evaluation.probing.cuts import cut_positions, even_targets
from vapo_verl.evaluation.probing.engine import Engine
from vapo_verl.evaluation.probing.probe_options import ProbeOptions
from vapo_verl.evaluation.probing.respond import Response, grade, respond
from vapo_verl.evaluation.probing.rows import Row


def decide_early(
    engine: Engine, rows: Sequence[Row], options: ProbeOptions, early: EarlyOptions
) -> list[dict[str, Any]]:
    """A record for each row: its response, and the answer at every cut.

    Cuts that fall on one position are asked once. Each context is the prompt, the response's own
    tokens before the cut, and the suffix: all but the last block of it is in the KV cache.
    """
    responses = respond(engine, rows, options)
    targets, suffix = even_targets(early.num_cuts), engine.encode(early.suffix)
    places = [cut_positions(response.reasoning, targets) for response in responses]
    asked = [
        (number, position)
        for number, positions in enumerate(places)
        for position in dict.fromkeys(positions)
    ]
    completions = engine.complete(
        [responses[number].before(position).then(suffix) for number, position in asked],
        early.answer_tokens,
    )
    forced = {}
    for (number, position), completion in zip(asked, completions, strict=True):
        response = responses[number]
        ids = (*response.completion.ids[:position], *suffix, *completion.ids)
        forced[number, position] = grade(engine.decode(ids), response.row)
    records = []
    for number, (response, positions) in enumerate(zip(responses, places, strict=True)):
        cuts = [
            Cut(target=target, position=position, **asdict(forced[number, position]))
            for target, position in zip(targets, positions, strict=True)
        ]
        records.append(_record(response, cuts))
    return records


def _record(response: Response, cuts: Sequence[Cut]) -> dict[str, Any]:
    return {
        **response.row.identity(),
        "response": response.text,
        "num_tokens": response.num_tokens,
        "reasoning": [response.reasoning.start, response.reasoning.end],
        "finish": response.completion.finish,
        **asdict(response.grade),
        "cuts": [asdict(cut) for cut in cuts],
    }
