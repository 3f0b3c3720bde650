"""The prompt of a row: the question with its images, and what the answer is to look like."""

from vapo_verl.data.cells import IMAGE_PLACEHOLDER

PROMPT_SUFFIX = (
    "Look at the image and think the question through inside <think> </think>. "
    "Then state only the final answer inside \\boxed{}."
)
"""Asks for the form that the format reward checks."""


def build_prompt(question: str, num_images: int) -> list[dict[str, str]]:
    """One user turn: the question, a placeholder per image in front if it has none, the suffix.

    Placeholders that the question brings stay where they are.
    """
    question = question.strip()
    if IMAGE_PLACEHOLDER not in question:
        question = IMAGE_PLACEHOLDER * num_images + question
    return [{"role": "user", "content": f"{question}\n{PROMPT_SUFFIX}"}]
