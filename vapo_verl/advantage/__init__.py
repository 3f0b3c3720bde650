"""Advantages: GRPO's outcome advantage, weighted per token by visual attention."""

from vapo_verl.advantage.vapo import AdvantageStats, vapo_advantage

__all__ = ["AdvantageStats", "vapo_advantage"]
