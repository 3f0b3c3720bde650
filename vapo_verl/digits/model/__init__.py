"""Small Qwen2.5-VL models that can read grids of digits, and the recipes that made them.

Their weights are here (`model_dir`), so that the demo, the end-to-end tests and the
study start from a model that answers in the right format, is sometimes correct, and judges
claims better than chance.
"""

from pathlib import Path


def model_dir(name: str = "digits") -> Path:
    """Return the folder of a packaged model, for `from_pretrained` or `vllm.LLM`.

    Args:
        name: `digits`, which answers short questions; `long_digits`, trained further on long
            questions (in a source checkout only); or `hasty_digits`, `long_digits` fine-tuned on
            data in which half of the answers do not re-read the image. Their cards (README.md) have
            figures.

    Raises:
        FileNotFoundError: the model is not here; the message says how to make it.
    """
    folder = Path(__file__).parent / name
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"no model {folder}: installed packages carry digits and hasty_digits alone; "
            f"`python -m vapo_verl.digits.model --preset {name} --out {folder}` makes it"
        )
    return folder
