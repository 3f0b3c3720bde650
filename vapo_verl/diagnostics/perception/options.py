"""How claims are asked along a response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vapo_verl.config import AnchorConfig

COMMAND = "perception"


@dataclass(frozen=True, slots=True, kw_only=True)
class PerceptionOptions:
    """Options of the command."""

    num_cuts: int = 20
    """K, at logical boundaries evenly spread over the reasoning; fewer where it has fewer."""
    claims_per_cut: int = 1
    """Claims asked at each cut; the cuts of a response go round all claims of its row."""

    def settings(self) -> dict[str, Any]:
        """What results depend on."""
        return {
            "--num-cuts": self.num_cuts,
            "--claims-per-cut": self.claims_per_cut,
            "question": AnchorConfig().question,
        }
