"""What a run folder tells: one HTML file with its curves, its forgetting and its rollouts."""
