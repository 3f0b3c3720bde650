"""Old name of `python -m vapo_verl.digits`, for one release."""

import runpy
import sys

if __name__ == "__main__":
    print("python -m vapo_verl.data.digits is now python -m vapo_verl.digits", file=sys.stderr)
    runpy.run_module("vapo_verl.digits", run_name="__main__", alter_sys=True)
