"""Advantages: GRPO's outcome advantage, spread over tokens by where they look."""

from vapo_verl.advantage.vapo import AdvantageStats, vapo_advantage, vapo_advantage_with_stats

__all__ = ["AdvantageStats", "vapo_advantage", "vapo_advantage_with_stats"]
