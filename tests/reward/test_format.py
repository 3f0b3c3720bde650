import pytest

from vapo_verl.reward.components import format_score


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (r"<think>I see 3.</think> \boxed{3}", 1.0),
        ("\n<think>\nI see 3.\n</think>\nThe answer is \\boxed{\\frac{1}{2}}.", 1.0),
        (r"<think></think>\boxed{3}", 1.0),
        (r"Well, <think>I see 3.</think> \boxed{3}", 0.0),
        (r"<think>I see 3. \boxed{3}", 0.0),
        (r"<think>I see 3. \boxed{3}</think>", 0.0),
        (r"<think>I see 3.</think> 3", 0.0),
        (r"<think>I see 3.</think> \boxed{3", 0.0),
        (r"<think>I see 3.</think> \boxed{}", 0.0),
        (r"<think>a</think><think>b</think> \boxed{3}", 0.0),
        (r"<think>a</think> \boxed{3}</think>", 0.0),
        (r"</think>a<think> \boxed{3}", 0.0),
        (r"\boxed{3}", 0.0),
        ("", 0.0),
    ],
)
def test_one_reasoning_then_a_boxed_answer(text, score):
    assert format_score(text) == score


@pytest.mark.parametrize(
    ("text", "prompt_end", "score"),
    [
        ("I see 3.\n</think>\n\n\\boxed{3}", "assistant\n<think>\n", 1.0),
        ("I see 3.\n</think>\n\n\\boxed{3}", "assistant\n", 0.0),
        (r"<think>I see 3.</think> \boxed{3}", "assistant\n", 1.0),
        (r"<think>I see 3.</think> \boxed{3}", "assistant\n<think>\n", 0.0),  # twice
        (r"I see 3.</think> \boxed{3}", "in <think> </think> tags", 0.0),
    ],
)
def test_a_template_may_open_the_reasoning(text, prompt_end, score):
    assert format_score(text, prompt_end) == score
