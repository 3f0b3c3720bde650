"""Where a response is interrupted."""

from vapo_verl.evaluation.interventions.intervention_probe import next_insertion, plan_insertions
from vapo_verl.evaluation.probing.respond import Reasoning


def test_insertions_are_as_far_apart_as_a_fifth_of_the_reasoning():
    reasoning = Reasoning(start=1, end=51, boundaries=(1, 9, 12, 30, 51))
    plan = plan_insertions(reasoning, 4)
    assert (plan.first, plan.distance, plan.step) == (12, 10, 15)  # 12 is nearer to 11 than 9


def test_a_reasoning_of_one_clause_takes_none():
    assert plan_insertions(Reasoning(start=1, end=9, boundaries=(1, 9)), 4).first is None
    assert plan_insertions(Reasoning(start=0, end=0, boundaries=(0,)), 4).first is None


def test_the_next_insertion_follows_a_clause():
    pieces = ["a", ".", "b", "c", ",", "d", "e"]
    assert next_insertion(pieces, 4) == 5
    assert next_insertion(pieces, 1) == 2
    assert next_insertion(["a", "b"], 1) is None
    assert next_insertion(["a", ".", "</", "think", ">", "."], 4) is None
    assert next_insertion(["a", ".", "\\boxed", "{1}"], 4) is None
