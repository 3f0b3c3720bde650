"""Advantages: GRPO's outcome advantage, spread over tokens by where they look."""

from vapo_verl.advantage.vapo import AdvantageStats, vapo_advantage

__all__ = ["AdvantageStats", "vapo_advantage"]
