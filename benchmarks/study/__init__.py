"""Does VAPO see better than GRPO late in its reasoning? A study that fits on a laptop.

`python -m benchmarks.study` makes the data, trains every arm with every seed,
measures the checkpoints on held-out scans and writes figures, tests and plots. Finished
stages are skipped, so that the same command resumes.
"""
