"""Old name of `python -m vapo_verl.digits.model`, for one release."""

import runpy
import sys

if __name__ == "__main__":
    print(
        "python -m vapo_verl.small_model is now python -m vapo_verl.digits.model", file=sys.stderr
    )
    runpy.run_module("vapo_verl.digits.model", run_name="__main__", alter_sys=True)
