"""We-Math: 1,740 multiple-choice questions, of which 525 are split into 2 or 3 steps each.

Protocol: VLMEvalKit's `WeMath` (vlmeval/dataset/image_mcq.py and vlmeval/dataset/utils/wemath.py,
read 2026-11), Qiao et al. 2024 (arXiv 2407.01284). The prompt is the template of multiple choice
without its last sentence; `WeMath_COT` adds column `requirement`. The answer is a letter.

Rows with the same `ID` and number of steps form a chain: `2steps_1`, `2steps_2`, `2steps_multi`,
or `3steps_1` .. `3steps_multi` in column `key`. By the correctness of its steps and of the composed
question (multi), a chain is one of four:

    IK  insufficient knowledge      a step incorrect, multi incorrect
    IG  inadequate generalization   all steps correct, multi incorrect
    CM  complete mastery            all steps correct, multi correct; loose: some step correct
    RM  rote memorization           a step incorrect, multi correct;  loose: all steps incorrect

    score = (N - IG / 2 - RM - IK) / N     strict and loose, over N chains (525 in all)

The rates of IK, IG and CM are over N; that of RM is RM / (CM + RM). Chains with a missing row, as
in a subset, are left out; `chains` is the fraction of chains that are complete. `S1` is the
accuracy of steps, `S2` and `S3` those of composed questions of two and three steps.
"""

import math
import re
from collections.abc import Sequence

from vapo_verl.data.errors import BadCell
from vapo_verl.evaluation.benchmarks import BenchmarkRow, Grade, Prompt, Rule, rate
from vapo_verl.evaluation.benchmarks.rules.generic import grade_choice, mcq_prompt

NAME = "wemath"
MULTI = "multi"
_KEY = re.compile(r"([23])steps_([123]|multi)")


def grade(row: BenchmarkRow, prediction: str) -> Grade:
    """The chosen letter is the letter of the answer.

    Raises:
        BadCell: the answer is not an option, or `ID` and `key` name no place in a chain.
    """
    place_of(row)
    return grade_choice(row, prediction, NAME)


def place_of(row: BenchmarkRow) -> tuple[int, str, str]:
    """Number of steps, ID of the chain, and the row's place in it (`1`, `2`, `3`, `multi`).

    Raises:
        BadCell: an unknown key, or no ID.
    """
    key = row.extra.get("key", "")
    chain = row.extra.get("ID") or row.extra.get("id", "")
    found = _KEY.fullmatch(key.strip())
    if found is None or not chain:
        said = f"ID {chain!r} and key {key!r} of index {row.index!r} name no place in a chain"
        fix = "keep both columns of the original file (2steps_1, 2steps_2, 2steps_multi)"
        raise BadCell("key", said, fix)
    return int(found[1]), chain, found[2]


def chain_cluster(row: BenchmarkRow) -> str:
    """Rows of one chain share a key."""
    num_steps, chain, _ = place_of(row)
    return f"{num_steps}steps {chain}"


def scores(rows: Sequence[BenchmarkRow], grades: Sequence[Grade]) -> dict[str, float]:
    """Strict and loose scores, the rates of the four kinds, and S1, S2, S3."""
    chains: dict[tuple[int, str], dict[str, bool]] = {}
    for row, grade in zip(rows, grades, strict=True):
        num_steps, chain, place = place_of(row)
        chains.setdefault((num_steps, chain), {})[place] = grade.correct is True
    complete = [
        (num_steps, [chain[str(step)] for step in range(1, num_steps + 1)], chain[MULTI])
        for (num_steps, _), chain in chains.items()
        if len(chain) == num_steps + 1
    ]
    return {
        **four_kinds([(steps, multi) for _, steps, multi in complete]),
        "S1": rate([step for _, steps, _ in complete for step in steps]),
        "S2": rate([multi for num_steps, _, multi in complete if num_steps == 2]),
        "S3": rate([multi for num_steps, _, multi in complete if num_steps == 3]),
        "chains": len(complete) / len(chains) if chains else math.nan,
    }


def four_kinds(chains: Sequence[tuple[Sequence[bool], bool]]) -> dict[str, float]:
    """Scores and rates of chains, each as (correctness of its steps, of multi); nan without any."""
    num = len(chains)
    multi_incorrect = [steps for steps, multi in chains if not multi]
    multi_correct = [steps for steps, multi in chains if multi]
    generalization = sum(all(steps) for steps in multi_incorrect)
    knowledge = len(multi_incorrect) - generalization
    rote = {
        "strict": sum(not all(steps) for steps in multi_correct),
        "loose": sum(not any(steps) for steps in multi_correct),
    }
    found = {}
    for name, memorized in rote.items():
        score = num - generalization / 2 - memorized - knowledge
        found[name] = score / num if num else math.nan
    found["IK"] = knowledge / num if num else math.nan
    found["IG"] = generalization / num if num else math.nan
    for name, memorized in rote.items():
        mastered = len(multi_correct) - memorized
        found[f"CM {name}"] = mastered / num if num else math.nan
        found[f"RM {name}"] = memorized / len(multi_correct) if multi_correct else math.nan
    return found


def prompt(row: BenchmarkRow) -> Prompt:
    """The template of multiple choice, ending with the options."""
    return mcq_prompt(row, select="")


RULE = Rule(
    name=NAME,
    grade=grade,
    prompt=prompt,
    scores=scores,
    cluster=chain_cluster,
    needs=("key",),
)
