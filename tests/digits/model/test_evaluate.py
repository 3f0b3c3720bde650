import pytest

from vapo_verl.digits.model import evaluate
from vapo_verl.digits.model.evaluate import chance, mixed_groups


def row(kind, truth):
    return {"extra_info": {"kind": kind}, "reward_model": {"ground_truth": truth}}


def test_chance_is_the_most_common_answer_of_every_kind():
    rows = [row("sum", "3"), row("sum", "3"), row("sum", "4"), row("color", "red")]
    assert chance(rows) == pytest.approx(3 / 4)


def test_mixed_groups_are_neither_all_right_nor_all_wrong(monkeypatch):
    # by row: always right, always wrong, right once, never in the format
    answers = [["1"] * 5, ["9"] * 5, ["3", "0", "0", "0", "0"], [None] * 5]
    rows = [row("sum", str(number)) for number in (1, 2, 3, 4)]
    rounds = iter(range(5))

    def respond(model, processor, prompts, temperature):
        assert temperature == 1.0
        turn = next(rounds)
        return [of_row[turn] for of_row in answers]

    monkeypatch.setattr(evaluate, "make_prompt", lambda processor, row: row)
    monkeypatch.setattr(evaluate, "respond", respond)
    monkeypatch.setattr(evaluate, "read_answer", lambda processor, sample: sample)
    assert mixed_groups(None, None, rows) == pytest.approx(1 / 4)
