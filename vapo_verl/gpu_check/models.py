"""Random models of a check, made once and shared by its stages."""

from pathlib import Path

from vapo_verl.files import atomic_write
from vapo_verl.gpu_check.case import Check


def random_model(
    check: Check, size: str, layers: int | None = None, vision_layers: int | None = None
) -> Path:
    """Folder of a random model, see `vapo_verl.digits.model.random_models`."""
    from vapo_verl.digits.model.random_models import make_random_model

    named = "_".join(str(part) for part in (size, layers, vision_layers) if part)
    folder = check.shared / f"model_{named}"
    if not folder.is_dir():
        with atomic_write(folder) as temporary:
            make_random_model(temporary, size, layers=layers, vision_layers=vision_layers)
    return folder
