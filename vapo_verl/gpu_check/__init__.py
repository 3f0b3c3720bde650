"""`python -m vapo_verl.gpu_check`: check this package on a real GPU, within minutes.

Each stage runs in a process of its own with a time limit: `runner.py` starts the stages, `case.py`
is their interface, `results.py` writes what they found. See docs/gpu.md.
"""
