"""Where the image is exchanged, and for what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vapo_verl.config import AnchorConfig

COMMAND = "masking"
EXCHANGES = ("swap", "blank")


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskingOptions:
    """Options of the command."""

    num_cuts: int = 11
    """From 0 to 100 % of the reasoning."""
    claims_per_cut: int = 1
    """Claims asked at each cut, with the right image and with the exchanged ones; 0 asks none."""

    def settings(self) -> dict[str, Any]:
        """What results depend on."""
        return {
            "--num-cuts": self.num_cuts,
            "--claims-per-cut": self.claims_per_cut,
            "question": AnchorConfig().question,
        }
