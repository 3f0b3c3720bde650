"""The world in which predictions forget the image: labels, solutions, card."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from vapo_verl.digits.claims import ColorClaim, DigitClaim, LargerClaim
from vapo_verl.digits.model import forgetful_start
from vapo_verl.digits.model.forgetful import (
    CLAIM_KINDS,
    QUESTIONS,
    READ,
    STRONG,
    ForgetfulMaker,
    Forgetting,
    belief,
    believed,
    misread_scene,
    solution,
)
from vapo_verl.digits.model.forgetful_start import ProbedClaim, StartConfig, by_place
from vapo_verl.digits.model.samples import IGNORED, answer_ids, collate, cut_positions, piece
from vapo_verl.digits.questions import sample_question
from vapo_verl.digits.scene import Cell, Scene, sample_scene, scan_pool

SCENE = Scene(rows=3, cols=3, cells=tuple(Cell(digit=i, color="red", scan=0) for i in range(9)))
POSITIONS = list(SCENE.positions)


@pytest.fixture(scope="module")
def maker(tokenizer):
    return ForgetfulMaker(
        tokenizer=tokenizer,
        pool=scan_pool("train"),
        questions=QUESTIONS,
        hasty=0.3,
        num_probes=8,
        kinds=CLAIM_KINDS,
    )


def test_the_image_fades_cell_by_cell():
    def seen(position):
        known = belief(SCENE, "", position, memory=10.0)
        return [name for name, cell in known.items() if cell is not None]

    # the first cell until 5 tokens, the middle one until 10, the last until 15
    assert seen(0) == POSITIONS
    assert seen(5) == POSITIONS[1:]
    assert seen(10) == POSITIONS[5:]
    assert seen(15) == []


def test_the_last_statement_counts_correct_or_not():
    text = "top left is blue 7. middle center is red 4. top left is green 0."
    known = belief(SCENE, text, 99, memory=10.0)
    assert known["top left"] == ("green", 0) and known["middle center"] == ("red", 4)
    assert known["top right"] is None


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        (DigitClaim("top left", 7), True),
        (DigitClaim("top left", 0), False),  # true of the image, and not of what was said
        (ColorClaim("top left", "blue"), True),
        (DigitClaim("top right", 2), False),  # forgotten: No
        (ColorClaim("top right", "red"), False),
    ],
)
def test_a_claim_is_judged_by_what_is_known(claim, expected):
    assert believed(claim, belief(SCENE, "top left is blue 7.", 99, memory=10.0)) is expected


def test_a_claim_about_several_cells_is_refused():
    known = belief(SCENE, "", 0, memory=10.0)
    with pytest.raises(ValueError, match="kinds identity, color"):
        believed(LargerClaim("top left", "top right"), known)


@pytest.mark.parametrize("guess", [False, True])
@pytest.mark.parametrize("check", [0.0, 1.0])
def test_a_check_reads_what_was_not_stated_and_length_says_nothing(guess, check):
    lengths, checked = set(), []
    for seed in range(40):
        rng = random.Random(seed)
        question = sample_question(rng, SCENE, QUESTIONS)
        sentences = solution(rng, SCENE, question, guess=guess, check=check)
        answered = question.hasty_steps if guess else question.steps
        assert tuple(sentences[: len(answered)]) == answered
        before = {name for name, _, _ in READ.findall(" ".join(answered))}
        after = [name for name, _, _ in READ.findall(" ".join(sentences[len(answered) :]))]
        assert not before & {*after} and len(after) == len({*after})
        checked.append(len(after))
        lengths.add(sum(len(sentence.split()) + 1 for sentence in sentences))
        assert len(sentences) >= 20  # so many cuts
    assert max(lengths) - min(lengths) < 4
    assert (min(checked) >= 2) if check else (max(checked) == 0)


def test_strengths_differ_in_their_labels_alone(maker):
    forgets = [maker.question(random.Random(i), 3, 3) for i in range(30)]
    never = replace(maker, forgetting=Forgetting(memory=None))
    keeps = [never.question(random.Random(i), 3, 3) for i in range(30)]
    differing = 0
    for one, other in zip(forgets, keeps, strict=True):
        assert one.response_ids == other.response_ids
        assert one.response_learnt == other.response_learnt
        assert (one.pixels == other.pixels).all()
        for a, b in zip(one.probes, other.probes, strict=True):
            assert (a.cut, a.ids[:-1]) == (b.cut, b.ids[:-1])
            differing += a.ids[-1] != b.ids[-1]
    assert 30 < differing < 200  # of 240


def test_before_the_response_predictions_follow_the_image(maker):
    # cut 0 is before any statement, and before anything is forgotten
    one = replace(maker, num_probes=2)
    never = replace(one, forgetting=Forgetting(memory=None))
    for seed in range(20):
        a, b = (m.question(random.Random(seed), 3, 3).probes[0] for m in (one, never))
        assert a.cut == 0 and a == b


def test_a_planted_misreading_teaches_predictions_and_not_the_response(maker, packaged):
    planted = replace(maker, forgetting=Forgetting(planted=1.0, misread=1.0))
    sample = planted.question(random.Random(1), 3, 3)
    assert not sample.response_learnt
    labels = collate([sample], packaged[1])["labels"][0]
    start = len(sample.prompt_ids) + len(sample.response_ids)
    assert (labels[:start] == IGNORED).all()
    answers = answer_ids(maker.tokenizer)
    assert sum(int(label) in answers for label in labels[start:]) == 2 * len(sample.probes)


def test_stated_claims_are_as_stated_late_in_a_response(maker):
    """With everything misread, a Yes at the last cut agrees with the text and not the image."""
    planted = replace(maker, forgetting=Forgetting(planted=1.0, misread=1.0), num_probes=16)
    yes, _ = answer_ids(maker.tokenizer)
    agreeing = late = 0
    for seed in range(20):
        sample = planted.question(random.Random(seed), 3, 3)
        pieces = [piece(maker.tokenizer, token) for token in sample.response_ids]
        for probe in sample.probes:
            if probe.cut < 2 * STRONG or probe.ids[-1] != yes:
                continue
            late += 1
            asked = maker.tokenizer.decode(list(probe.ids))
            said = READ.findall("".join(pieces[: probe.cut]))
            agreeing += any(
                f"{name} digit is {digit}." in asked or f"{name} digit is {color}." in asked
                for name, color, digit in said
            )
    assert agreeing == late > 20


def test_a_misread_scene_has_other_digits():
    rng = random.Random(0)
    scene = sample_scene(rng, scan_pool("train"), 3, 3)
    other = misread_scene(rng, scene, 1.0)
    assert all(a.digit != b.digit for a, b in zip(scene.cells, other.cells, strict=True))
    assert misread_scene(rng, scene, 0.0) == scene


def test_twenty_cuts_are_distinct(maker):
    for seed in range(20):
        sample = maker.question(random.Random(seed), 3, 3)
        pieces = [piece(maker.tokenizer, token) for token in sample.response_ids]
        cuts = np.array(cut_positions(pieces)[1:])
        assert len(cuts) >= 20 and np.diff(cuts).min() >= forgetful_start.MIN_GAP


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Forgetting(memory=0.0), r"memory=0\.0: give a number of tokens above 0"),
        (lambda: Forgetting(check=1.5), r"check=1\.5: give a fraction"),
        (lambda: Forgetting(misread=-0.1), r"misread=-0\.1"),
        (lambda: StartConfig(guesses=2.0), r"guesses=2\.0: give a fraction"),
        (lambda: StartConfig(steps=0), r"steps=0: give 1 or more"),
    ],
)
def test_what_no_world_can_have_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_predictions_are_counted_by_third_and_by_what_was_stated():
    def claim(progress, stated, correct):
        return ProbedClaim(kind="color", progress=progress, stated=stated, correct=correct)

    late = [claim(0.9, True, True), claim(0.8, False, False), claim(0.7, False, True)]
    found = by_place([claim(0.1, False, True), claim(0.5, True, True), *late])
    assert found["late, stated"] == {"accuracy": 1.0, "number": 1}
    assert found["late, not stated"] == {"accuracy": 0.5, "number": 2}
    assert found["late"]["number"] == 3 and found["early"]["number"] == 1
    assert found["color, not stated"] == {"accuracy": pytest.approx(2 / 3), "number": 3}


@pytest.fixture
def one_thread():
    """Two wait for each other at every small product, on a machine that does other things too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_warm_start_is_trained_measured_and_found_again(tmp_path, one_thread):
    tiny = StartConfig(steps=1, card_rows=2, card_samples=2)
    out = tmp_path / "start"
    out.mkdir()
    forgetful_start.make_warm_start(out, tiny)
    assert not forgetful_start.is_complete(out, tiny)  # without its card
    figures = forgetful_start.measure(out, tiny)
    assert 0 <= figures["accuracy"] <= 1 and figures["distinct_cuts"] > 5
    assert sum(figures["claims"][third]["number"] for third in ("early", "middle", "late")) == 80
    forgetful_start.write_card(out, figures, tiny, command="make it", made="2026-01-01")
    card = (out / "README.md").read_text()
    assert "after `memory` = 18.0 tokens" in card and "Made by `make it`, 2026-01-01." in card
    assert "| late, stated |" in card or "| late, not stated |" in card
    assert forgetful_start.is_complete(out, tiny)
    assert not forgetful_start.is_complete(out, replace(tiny, guesses=0.2))
