"""`python -m vapo_verl.gpu_check`: prove on a real GPU, within minutes, what this package does.

Each stage runs in a process of its own with a time limit: `runner.py` starts them, `case.py` is
what a stage sees, `results.py` writes what they found. See docs/gpu.md.
"""
