"""Warm starts of the world `forgetful_digits`: train one, measure it, and write its card."""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from vapo_verl.anchors.plan import SampleKey, plan_anchors
from vapo_verl.anchors.probe import Anchor, AnchorResult
from vapo_verl.anchors.signal import ProbedResponse, claim_agreement, perception_spread
from vapo_verl.data.claims_column import Claim
from vapo_verl.digits.build import DigitsConfig, build_split
from vapo_verl.digits.claims import all_claims
from vapo_verl.digits.model import model_dir
from vapo_verl.digits.model.architecture import load_model, save_model, write_json
from vapo_verl.digits.model.evaluate import (
    GROUP_SIZE,
    make_prompt,
    predictions,
    read_answer,
    respond,
)
from vapo_verl.digits.model.forgetful import (
    CLAIM_KINDS,
    QUESTIONS,
    READ,
    ForgetfulMaker,
    Forgetting,
)
from vapo_verl.digits.model.samples import Sample, make_probe, piece
from vapo_verl.digits.model.warmup import Part, WarmupConfig, warm_up
from vapo_verl.digits.scene import Scene, scan_pool

CARD, FIGURES = "README.md", "figures.json"
START = "hasty_digits"
"""The packaged model that a warm start begins with."""
NUM_CLAIMS, LATE_EMPHASIS, MIN_GAP = 20, 1.5, 3
"""K, beta and the smallest distance of two cuts of the card's anchors, as the recipe `study`."""
_EARLY, _LATE = 1 / 3, 2 / 3
"""Ends of a response's first and middle third, as in the metrics of a run."""
_LOG_EVERY, _SAVE_EVERY = 20, 100
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartConfig:
    """All settings that determine a warm start."""

    forgetting: Forgetting = field(default_factory=Forgetting)
    guesses: float = 0.1
    """Fraction of solutions that state the largest digit without reading it. It sets the
    accuracy."""
    steps: int = 500
    seed: int = 0
    card_rows: int = 64
    """Validation rows of the card's figures."""
    card_samples: int = GROUP_SIZE
    """Responses to each of them at temperature 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.guesses <= 1:
            raise ValueError(f"guesses={self.guesses}: give a fraction of 0 to 1")
        for name, least in (("steps", 1), ("card_rows", 1), ("card_samples", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: give {least} or more")


def data_config(**sizes: int) -> DigitsConfig:
    """Rows of this world; `sizes` are those of the splits, and the seed."""
    return DigitsConfig(grids=("3x3",), questions=QUESTIONS, claim_kinds=CLAIM_KINDS, **sizes)


def make_warm_start(out: Path, config: StartConfig) -> None:
    """Train the packaged `hasty_digits` on samples of this world, and save it in `out`."""
    model, processor = load_model(model_dir(START))
    maker = ForgetfulMaker(
        tokenizer=processor.tokenizer, pool=scan_pool("train"), forgetting=config.forgetting
    )
    losses = []
    for step, loss in enumerate(warm_up(model, processor, maker, warmup_config(config)), start=1):
        losses.append((loss.response, loss.prediction))
        if step % _LOG_EVERY == 0:
            response, prediction = np.mean(losses[-_LOG_EVERY:], axis=0)
            _logger.info("step %d response %.3f prediction %.3f", step, response, prediction)
        if step % _SAVE_EVERY == 0:
            save_model(model, processor, out)  # so that an interrupted run leaves a model
    save_model(model, processor, out)


def warmup_config(config: StartConfig) -> WarmupConfig:
    """The training settings of a warm start."""
    part = Part(kind="question", steps=config.steps, num_probes=8, kinds=CLAIM_KINDS)
    return WarmupConfig(
        parts=(part,),
        questions=QUESTIONS,
        hasty=config.guesses,
        grids=("3x3",),
        learning_rate=1e-3,
        seed=config.seed,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedClaim:
    """A prediction on a claim about one cell, at a cut of a response."""

    kind: str
    progress: float
    """Position of the cut over the response's length."""
    stated: bool
    """Whether the response has stated the claim's cell before the cut."""
    correct: bool


@torch.no_grad()
def measure(folder: Path, config: StartConfig) -> dict[str, Any]:
    """Figures of a saved model on validation rows, each answered several times.

    Every sample is probed as the recipe `study` does: 20 claims at 20 random cuts. Correct and
    incorrect answers are probed alike.
    """
    model, processor = load_model(folder)
    rows = build_split(data_config(val=config.card_rows, seed=config.seed), "val")
    prompts = [make_prompt(processor, row) for row in rows]
    torch.manual_seed(config.seed)
    greedy = respond(model, processor, prompts, 0.0)
    sampled = [respond(model, processor, prompts, 1.0) for _ in range(config.card_samples)]
    truths = [row["reward_model"]["ground_truth"] for row in rows]

    def correct(samples: Sequence[Sample]) -> list[bool]:
        answers = [read_answer(processor, sample) for sample in samples]
        return [answer == truth for answer, truth in zip(answers, truths, strict=True)]

    right = np.array([correct(samples) for samples in sampled])
    responses: list[ProbedResponse] = []
    claims: list[ProbedClaim] = []
    cuts = []
    for number, samples in enumerate(sampled):
        plans = [
            _plan(processor, sample, row, number, config.seed)
            for sample, row in zip(samples, rows, strict=True)
        ]
        answers = ask(model, processor, samples, plans)
        for sample, row, plan, said in zip(samples, rows, plans, answers, strict=True):
            index = row["extra_info"]["index"]
            results = [anchor_result(*pair) for pair in zip(plan, said, strict=True)]
            length = len(sample.response_ids)
            responses.append(
                ProbedResponse(
                    group_id=index, results=results, length=length, num_claims=NUM_CLAIMS
                )
            )
            claims += _probed_claims(processor, sample, row, results)
            cuts.append(len({anchor.position for anchor in plan}))
    found = perception_spread(responses, LATE_EMPHASIS, paired=False)
    return {
        "rows": len(rows),
        "accuracy_greedy": float(np.mean(correct(greedy))),
        "accuracy": float(right.mean()),
        "groups_right": float(right.all(axis=0).mean()),
        "groups_mixed": float((right.any(axis=0) & ~right.all(axis=0)).mean()),
        "tokens": float(np.mean([len(s.response_ids) for samples in sampled for s in samples])),
        "distinct_cuts": float(np.mean(cuts)),
        "agreement": claim_agreement(responses),
        "spread": found.spread,
        "spread_response": found.spread * (1 - found.draw_fraction) ** 0.5,
        "spread_draw": found.spread * found.draw_fraction**0.5,
        "claims": by_place(claims),
    }


def by_place(claims: Iterable[ProbedClaim]) -> dict[str, dict[str, float]]:
    """Accuracy and number of predictions: by third and by whether the cell was stated; by kind."""
    found: defaultdict[str, list[bool]] = defaultdict(list)
    for claim in claims:
        stated = "stated" if claim.stated else "not stated"
        third = (
            "early" if claim.progress <= _EARLY else "late" if claim.progress >= _LATE else "middle"
        )
        for key in (third, f"{third}, {stated}", f"{claim.kind}, {stated}"):
            found[key].append(claim.correct)
    return {
        key: {"accuracy": float(np.mean(values)), "number": len(values)}
        for key, values in sorted(found.items())
    }


def ask(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    samples: Sequence[Sample],
    plans: Sequence[Sequence[Anchor]],
) -> list[list[bool]]:
    """The model's greedy prediction at every anchor of every sample."""
    probed = [
        replace(
            sample,
            probes=tuple(
                make_probe(processor.tokenizer, a.position, a.claim, a.label) for a in plan
            ),
        )
        for sample, plan in zip(samples, plans, strict=True)
    ]
    return [said.tolist() for said in predictions(model, processor, probed)]


def pieces_of(processor: Qwen2_5_VLProcessor, sample: Sample) -> list[str]:
    """Text of each response token, without the end-of-turn token."""
    tokenizer = processor.tokenizer
    ids = [token for token in sample.response_ids if token != tokenizer.eos_token_id]
    return [piece(tokenizer, token) for token in ids]


def _plan(
    processor: Qwen2_5_VLProcessor, sample: Sample, row: dict, number: int, seed: int
) -> list[Anchor]:
    key = SampleKey(seed=seed, step=0, prompt_uid=str(row["extra_info"]["index"]), sample=number)
    return plan_anchors(
        pieces_of(processor, sample),
        [Claim(text=claim["text"], label=claim["label"]) for claim in row["claims"]],
        num_anchors=NUM_CLAIMS,
        placement="random",
        min_gap=MIN_GAP,
        rng=key.generator("anchors"),
    )


def anchor_result(anchor: Anchor, answer: bool) -> AnchorResult:
    """An anchor with a greedy answer, without the engine's statistics."""
    return AnchorResult(
        anchor=anchor,
        answer=answer,
        p_yes=float(answer),
        num_prompt_tokens=0,
        num_cached_tokens=0,
    )


def _probed_claims(
    processor: Qwen2_5_VLProcessor, sample: Sample, row: dict, results: Sequence[AnchorResult]
) -> list[ProbedClaim]:
    pieces = pieces_of(processor, sample)
    scene = Scene.from_json(row["extra_info"]["scene"])
    known = {claim.text: claim for claim in all_claims(scene) if claim.kind in CLAIM_KINDS}
    found = []
    for result in results:
        claim = known[result.anchor.claim]
        before = READ.findall("".join(pieces[: result.anchor.position]))
        _, position = claim.topic
        found.append(
            ProbedClaim(
                kind=claim.kind,
                progress=result.anchor.position / len(sample.response_ids),
                stated=position in {name for name, _, _ in before},
                correct=result.correct,
            )
        )
    return found


def write_card(
    out: Path, figures: dict[str, Any], config: StartConfig, *, command: str, made: str
) -> None:
    """Write the figures, and the card that shows them; its presence says that `out` is complete.

    Args:
        command: that makes the same model.
        made: date, machine and minutes.
    """
    write_json(out / FIGURES, {"config": asdict(config), **figures})
    names = {
        "accuracy_greedy": "accuracy, greedy",
        "accuracy": "accuracy at temperature 1",
        "groups_right": f"groups of {config.card_samples} that are all correct",
        "groups_mixed": "mixed groups",
        "tokens": "tokens of a response",
        "distinct_cuts": f"distinct cuts among {NUM_CLAIMS} anchors",
        "agreement": "equal predictions of two responses on a claim",
        "spread": "spread of R_perc within a prompt",
        "spread_response": "of it, due to the response",
        "spread_draw": "of it, due to the draw of claims and cuts",
    }
    lines = [f"| {title} | {figures[name]:.3f} |" for name, title in names.items()]
    claims = [
        f"| {name} | {found['accuracy']:.3f} | {found['number']} |"
        for name, found in figures["claims"].items()
    ]
    text = _CARD.format(
        memory=config.forgetting.memory,
        rows=figures["rows"],
        samples=config.card_samples,
        command=command,
        made=made,
        figures="\n".join(lines),
        claims="\n".join(claims),
    )
    (out / CARD).write_text(text)


def is_complete(folder: Path, config: StartConfig) -> bool:
    """Whether a folder holds this warm start, with its card."""
    file = folder / FIGURES
    if not (folder / CARD).is_file() or not file.is_file():
        return False
    return bool(json.loads(file.read_text())["config"] == asdict(config))


_CARD = """\
# A warm start of the world forgetful_digits

Predictions forget the image after `memory` = {memory} tokens of response (None: never).
Made by `{command}`, {made}.

Figures on {rows} validation rows, {samples} samples each, at temperature 1 and 20 random cuts.

| | |
|---|---|
{figures}

| correct predictions on claims | accuracy | number |
|---|---|---|
{claims}

"Stated" means that the response has said what is in the claim's cell before the cut.
"""
