"""Probing a checkpoint on held-out rows: rows, engine, responses, cuts, and results on disk."""
