"""The backends that walk the whole context, their kernels in Triton's interpreter."""

from pathlib import Path


def test_cases_full_context(run_interpreted):
    run_interpreted(Path(__file__).with_name("cases_full_context.py"))
