"""What a few probes say about the question's format."""

import pytest

from vapo_verl.anchors.question import CheckReply, FormatCheck, format_check_lines


def reply(label, p_yes, free=" Yes"):
    return CheckReply(
        label=label, p_yes=p_yes, free_token=free, free_is_answer=free in (" Yes", " No")
    )


HEALTHY = [reply(True, 0.8), reply(True, 0.4), reply(False, 0.3), reply(False, 0.6, " No")]


def test_figures():
    result = FormatCheck.of(HEALTHY)
    assert result.num_probes == 4
    assert result.accuracy == 2 / 4
    assert result.yes_rate == 2 / 4
    # 0.8 0.4 0.3 0.6: mean 0.525, squares of deviations 0.075625 + 0.015625 + 0.050625 + 0.005625
    assert result.p_yes_std == pytest.approx((0.1475 / 4) ** 0.5)
    assert result.free_fraction == 1.0
    assert "4 probes, accuracy 0.50 (chance 0.50 +- 0.25), yes-rate 0.50" in result.summary()
    assert result.warnings() == []


def test_one_way_answers_are_named():
    always_yes = FormatCheck.of([reply(i % 2 == 0, 0.7 + 0.02 * i) for i in range(10)])
    [warning] = always_yes.warnings()
    assert "answers yes to nearly every claim" in warning
    [warning] = FormatCheck.of([reply(i % 2 == 0, 0.1 + 0.02 * i) for i in range(10)]).warnings()
    assert "answers no to nearly every claim" in warning


def test_answers_that_do_not_depend_on_the_claim_are_named():
    flat = FormatCheck.of([reply(i % 2 == 0, 0.5 + 0.001 * (-1) ** (i // 2)) for i in range(8)])
    [warning] = flat.warnings()
    assert "p(yes) hardly differs" in warning


def test_free_answers_that_are_neither_are_shown():
    digits = [reply(i % 2 == 0, 0.3 + 0.05 * i, "1" if i < 6 else "0") for i in range(8)]
    [warning] = FormatCheck.of(digits).warnings()
    assert "100% of the probes with something else, mostly '1', '0'" in warning


def test_a_check_that_asked_no_claim_is_a_warning_with_the_key():
    [line] = format_check_lines(None, 8, 64)
    assert line.startswith("WARNING: anchor format check: no claim was asked: the first 8 training")
    assert "vapo.anchors.max_claim_tokens=64" in line


def test_a_healthy_check_is_one_line_without_a_warning():
    result = FormatCheck.of(HEALTHY)
    assert format_check_lines(result, 8, 64) == [result.summary()]
    always_yes = FormatCheck.of([reply(i % 2 == 0, 0.7 + 0.02 * i) for i in range(10)])
    summary, warning = format_check_lines(always_yes, 8, 64)
    assert (summary, warning[:9]) == (always_yes.summary(), "WARNING: ")
