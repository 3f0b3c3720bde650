"""Rewards of one response: accuracy, format, perception, their sum (arXiv 2509.25848)."""
