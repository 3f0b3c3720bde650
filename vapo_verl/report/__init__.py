"""The report of a run: one HTML file with its curves, its forgetting and its rollouts."""
