"""The kernel tests need torch, triton, numpy, jaxtyping and pytest: they run before an install."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
BARE = """
import sys
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions, requires
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

present, todo = set(), ["torch", "triton", "numpy", "jaxtyping", "pytest"]
while todo:
    name = canonicalize_name(todo.pop())
    if name not in present:
        present.add(name)
        needed = map(Requirement, requires(name) or ())
        todo += [x.name for x in needed if not x.marker or x.marker.evaluate({"extra": ""})]
absent = {
    module
    for module, distributions in packages_distributions().items()
    if not present & {canonicalize_name(x) for x in distributions}
} - {"vapo_verl"}
assert {"vllm", "verl", "ray", "transformers", "omegaconf", "hydra", "PIL"} <= absent

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in absent else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
import pytest

sys.exit(pytest.main(sys.argv[1:]))
"""
"""pytest where of the installed packages only those five and what they require can be imported."""


def test_kernel_tests_are_collected_before_anything_is_installed():
    options = "-q -c /dev/null --rootdir . --import-mode=importlib -p no:cacheprovider"
    names = ("test_cuda_gpu.py", "interpreter_cases_cuda.py")
    files = [f"tests/attention/kernels/{name}" for name in names]
    done = subprocess.run(
        [sys.executable, "-c", BARE, *options.split(), "--collect-only", *files],
        cwd=ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for file in files:
        assert f"{file}::test_agrees_with_the_reference" in done.stdout
