"""Asking a checkpoint about held-out rows: rows, engine, responses, cuts, and results on disk."""
