"""Fraction of the spread of R_perc between siblings that is due to the responses, by way to draw.

    python benchmarks/anchor_draws.py MODEL [--rows 32] [--draws 64] [--seeds 0 1 2] [--out FILE]

MODEL is a small model of the digits world, such as a warm start of `forgetful_digits`. It answers
validation rows of that world five times each. The correct responses to a row are the siblings: the
others earn no perception reward in VAPO. Every sibling is then scored under many draws of claims
and cuts (`vapo_verl.anchors.plan`), for K of 5 and 20, beta of 0 and 1.5, and three ways to draw:

- independent: each response gets its own claims and cuts, as in the paper;
- independent, relative: the same with cuts at random fractions of the reasoning;
- group: siblings share claims and fractions, `vapo.anchors.pairing=group`.

R_ij is the score of response i under draw j, and Var_i the variance between siblings:

    total       = mean_j Var_i(R_ij)
    by response = Cov_i(mean of R_ij over one half of the draws, over the other half)

The second is unbiased: the halves share no draws. `estimate` is 1 minus the run's own metric
`vapo/anchors/draw_fraction`, computed from one draw. Numbers are means over seeds, with the
standard deviation between them; each seed has its own rows, responses and draws. `--out` writes
JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from vapo_verl.anchors.plan import SampleKey, plan_anchors
from vapo_verl.anchors.probe import Anchor, AnchorResult
from vapo_verl.anchors.signal import ProbedResponse, perception_spread
from vapo_verl.data.claims_column import Claim
from vapo_verl.digits.build import build_split
from vapo_verl.digits.model.architecture import load_model
from vapo_verl.digits.model.evaluate import GROUP_SIZE, make_prompt, read_answer, respond
from vapo_verl.digits.model.forgetful_start import anchor_result, ask, data_config, pieces_of
from vapo_verl.digits.model.samples import Sample
from vapo_verl.reward.perception import perception_score

WAYS = {
    # name -> (placement, whether siblings share the draw)
    "independent": ("random", False),
    "independent, relative": ("relative", False),
    "group": ("random", True),
}
NUM_ANCHORS, LATE_EMPHASIS = (5, 20), (0.0, 1.5)
MIN_GAP = 3
"""As in the recipe `study`."""
PROBES_A_PASS = 20
"""Probes of a response in one forward pass."""
Asked = tuple[int, str]
"""Position and claim."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sibling:
    """A correct response that has a correct sibling."""

    row: int
    number: int
    """Its number among the responses to its row."""
    sample: Sample
    pieces: tuple[str, ...]
    claims: tuple[Claim, ...]

    def plans(self, way: str, num_anchors: int, seed: int, draws: int) -> list[list[Anchor]]:
        """Its anchors, draw by draw."""
        placement, shared = WAYS[way]
        keys = (
            SampleKey(seed=seed, step=draw, prompt_uid=str(self.row), sample=self.number)
            for draw in range(draws)
        )
        return [
            plan_anchors(
                self.pieces,
                self.claims,
                num_anchors=num_anchors,
                placement=placement,
                min_gap=MIN_GAP,
                rng=key.group_generator("anchors") if shared else key.generator("anchors"),
                paired=shared,
            )
            for key in keys
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Parts of the spread of R_perc between siblings."""

    total: float
    """Standard deviation."""
    by_response: float
    """Fraction of the variance that is due to the responses."""
    estimate: float
    """Estimate of `by_response` that a training run makes."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--draws", type=int, default=64, help="an even number")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    if args.rows < 1:
        parser.error(f"--rows {args.rows}: give 1 or more")
    if args.draws < 2 or args.draws % 2:
        parser.error(f"--draws {args.draws}: give an even number, 2 or more")
    of_seeds = [measure(args.model, args.rows, args.draws, seed) for seed in args.seeds]
    result = {
        "command": " ".join(["python benchmarks/anchor_draws.py", *(argv or sys.argv[1:])]),
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "rows": args.rows,
        "draws": args.draws,
        "seeds": args.seeds,
        "settings": [
            {"num_anchors": k, "late_emphasis": beta, "draw": way, **over_seeds(found)}
            for (k, beta, way), found in by_setting(of_seeds).items()
        ],
    }
    show(result)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


Setting = tuple[int, float, str]


def by_setting(of_seeds: Sequence[Mapping[Setting, Parts]]) -> dict[Setting, list[Parts]]:
    return {setting: [found[setting] for found in of_seeds] for setting in of_seeds[0]}


def over_seeds(found: Sequence[Parts]) -> dict[str, list[float]]:
    """Mean and standard deviation of each part."""
    columns = {name: [getattr(parts, name) for parts in found] for name in Parts.__slots__}
    return {
        name: [
            round(float(np.mean(values)), 4),
            round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else math.nan,
        ]
        for name, values in columns.items()
    }


def measure(folder: Path, num_rows: int, draws: int, seed: int) -> dict[Setting, Parts]:
    """The parts under every setting, for the responses and draws of one seed."""
    model, processor = load_model(folder)
    siblings = list(correct_siblings(model, processor, num_rows, seed))
    if not siblings:
        raise SystemExit(f"{folder}: no two responses to a row are correct; give more --rows")
    plans = {
        (k, way): [sibling.plans(way, k, seed, draws) for sibling in siblings]
        for k, way in itertools.product(NUM_ANCHORS, WAYS)
    }
    said = answers(model, processor, siblings, plans.values())
    return {
        (k, beta, way): parts(siblings, plans[k, way], said, beta, is_shared=WAYS[way][1])
        for k, beta, way in itertools.product(NUM_ANCHORS, LATE_EMPHASIS, WAYS)
    }


def correct_siblings(model: Any, processor: Any, num_rows: int, seed: int) -> Iterator[Sibling]:
    """Correct responses at temperature 1, from rows with at least two."""
    rows = build_split(data_config(val=num_rows, seed=seed), "val")
    prompts = [make_prompt(processor, row) for row in rows]
    torch.manual_seed(seed)
    sampled = [respond(model, processor, prompts, 1.0) for _ in range(GROUP_SIZE)]
    for number, row in enumerate(rows):
        truth = row["reward_model"]["ground_truth"]
        of_row = [samples[number] for samples in sampled]
        right = [(i, s) for i, s in enumerate(of_row) if read_answer(processor, s) == truth]
        if len(right) < 2:
            continue
        claims = tuple(Claim(text=c["text"], label=c["label"]) for c in row["claims"])
        for i, sample in right:
            pieces = tuple(pieces_of(processor, sample))
            yield Sibling(row=number, number=i, sample=sample, pieces=pieces, claims=claims)


def answers(
    model: Any,
    processor: Any,
    siblings: Sequence[Sibling],
    plans: Iterable[Sequence[Sequence[Sequence[Anchor]]]],
) -> list[dict[Asked, bool]]:
    """For each sibling, the greedy answer at every anchor of its plans; each is asked once."""
    wanted: list[dict[Asked, Anchor]] = [{} for _ in siblings]
    for of_setting in plans:
        for known, of_sibling in zip(wanted, of_setting, strict=True):
            for anchor in itertools.chain.from_iterable(of_sibling):
                known.setdefault((anchor.position, anchor.claim), anchor)
    said: list[dict[Asked, bool]] = [{} for _ in siblings]
    batches = [
        (number, list(anchors.values())[first : first + PROBES_A_PASS])
        for number, anchors in enumerate(wanted)
        for first in range(0, len(anchors), PROBES_A_PASS)
    ]
    replies = ask(
        model, processor, [siblings[n].sample for n, _ in batches], [batch for _, batch in batches]
    )
    for (number, batch), reply in zip(batches, replies, strict=True):
        for anchor, answer in zip(batch, reply, strict=True):
            said[number][anchor.position, anchor.claim] = answer
    return said


def parts(
    siblings: Sequence[Sibling],
    plans: Sequence[Sequence[Sequence[Anchor]]],
    said: Sequence[Mapping[Asked, bool]],
    late_emphasis: float,
    *,
    is_shared: bool,
) -> Parts:
    """Split the variance of R_perc between the siblings of a row, pooled over rows."""
    scores = np.array(
        [
            [score(sibling, plan, known, late_emphasis) for plan in of_sibling]
            for sibling, of_sibling, known in zip(siblings, plans, said, strict=True)
        ]
    )  # [siblings, draws]
    rows = np.array([sibling.row for sibling in siblings])
    total = by_response = freedom = 0.0
    for row in np.unique(rows):
        of_row = scores[rows == row]
        centred = of_row - of_row.mean(axis=0)
        total += (centred**2).sum(axis=0).mean()
        by_response += (centred[:, ::2].mean(axis=1) * centred[:, 1::2].mean(axis=1)).sum()
        freedom += len(of_row) - 1
    estimates = [
        1
        - perception_spread(
            [
                ProbedResponse(
                    group_id=sibling.row,
                    results=[answered(anchor, replies) for anchor in of_sibling[draw]],
                    length=len(sibling.sample.response_ids),
                    num_claims=len(sibling.claims),
                )
                for sibling, of_sibling, replies in zip(siblings, plans, said, strict=True)
            ],
            late_emphasis,
            paired=is_shared,
        ).draw_fraction
        for draw in range(scores.shape[1])
    ]
    known = [value for value in estimates if not math.isnan(value)]
    return Parts(
        total=math.sqrt(total / freedom),
        by_response=by_response / total if total else math.nan,
        estimate=float(np.mean(known)) if known else math.nan,
    )


def score(
    sibling: Sibling, plan: Sequence[Anchor], known: Mapping[Asked, bool], late_emphasis: float
) -> float:
    """R_perc of a response under one draw."""
    return perception_score(
        [answered(anchor, known).correct for anchor in plan],
        [anchor.position for anchor in plan],
        len(sibling.sample.response_ids),
        late_emphasis,
    )


def answered(anchor: Anchor, known: Mapping[Asked, bool]) -> AnchorResult:
    return anchor_result(anchor, known[anchor.position, anchor.claim])


def show(result: Mapping[str, Any]) -> None:
    """A Markdown table."""
    print("| K | beta | draw | spread of R_perc | due to the response | estimate of a run |")
    print("|---|---|---|---|---|---|")
    for row in result["settings"]:
        cells = [
            f"{mean:.3f} ± {deviation:.3f}"
            for mean, deviation in (row[name] for name in ("total", "by_response", "estimate"))
        ]
        first = [str(row["num_anchors"]), f"{row['late_emphasis']:g}", row["draw"]]
        print(f"| {' | '.join([*first, *cells])} |")


if __name__ == "__main__":
    main()
