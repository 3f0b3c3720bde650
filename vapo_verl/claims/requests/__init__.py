"""Requests to an OpenAI-compatible endpoint: faults, retries, pace."""
