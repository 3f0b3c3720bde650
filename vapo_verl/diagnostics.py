"""Old name of `python -m vapo_verl.report` and `vapo_verl.evaluation`, for one release."""

import runpy
import sys

NEW_NAMES = {"masking": "image-swap", "remedies": "interventions"}

if __name__ == "__main__":
    module = "vapo_verl.evaluation"
    if sys.argv[1:2] == ["report"]:
        module = "vapo_verl.report"
        del sys.argv[1]
    elif sys.argv[1:]:
        sys.argv[1] = NEW_NAMES.get(sys.argv[1], sys.argv[1])
    print(f"python -m vapo_verl.diagnostics is now python -m {module}", file=sys.stderr)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
