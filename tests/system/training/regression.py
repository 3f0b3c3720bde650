"""Losses and rewards of the smoke recipe, step by step, as the code of this commit computes them.

A change of the code that is meant to change no number must leave them as they are, to the bit, on
the kind of machine that wrote them. A change that is meant to writes them again, and its commit
says why:

    python tests/system/training/regression.py
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    import tests

    here = Path(__file__).resolve().parents[2]
    tests.__path__ = [str(here), *tests.__path__]  # another distribution has the name, too

from tests.system.smoke import Smoke, metrics, rollouts

FILE = Path(__file__).with_name("smoke_losses.json")
OVERRIDES = (
    "trainer.total_training_steps=3",
    *("trainer.save_freq=-1", "trainer.test_freq=-1", "trainer.val_before_train=false"),
)
NUM_ROWS = {"train": 128, "val": 16}
NAMES = (
    *(f"actor/{name}" for name in ("pg_loss", "kl_loss", "ppo_kl", "entropy", "grad_norm")),
    *(f"vapo/reward/{name}" for name in ("accuracy", "format", "perception", "total")),
    *("vapo/anchors/accuracy", "vapo/anchors/yes_rate", "vapo/anchors/num_probes"),
    *("critic/advantages/max", "critic/advantages/min", "response_length/mean"),
)
"""Metrics that follow from tokens and weights alone. The engine's own log probabilities are not
among them: they depend on which requests it happened to compute together."""
TOKENS = "tokens"
"""Hash of the sampled responses' token ids."""
NOISE = {"rel": 1e-3, "abs": 1e-4}
"""Of float32 on other machines. A token that is sampled differently is more than noise."""
PACKAGES = ("torch", "vllm", "verl", "transformers")
_VECTOR = re.compile(r"(avx|amx|fma|f16c|sse4|asimd|sve|neon|bf16)\w*")


def machine_kind() -> dict[str, Any]:
    """What the bits of a result depend on: the processor, its vector units, cores and libraries."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^(?:model name|CPU part)\s*:\s*(.+)$", info, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info, re.MULTILINE)
    return {
        "model": model[1] if model else "unknown",
        "vector_units": sorted(f for f in (flags[1] if flags else "").split() if _VECTOR.match(f)),
        "num_cores": os.cpu_count(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def values_of(run: Path) -> dict[str, dict[str, Any]]:
    """By step: metrics, and the hash of the tokens that were sampled."""
    found = {}
    for step, values in metrics(run).items():
        ids = [row["response_ids"] for row in rollouts(run, step)]
        digest = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
        found[str(step)] = {name: values[name] for name in NAMES} | {TOKENS: digest}
    return found


def differences(
    found: Mapping[str, Mapping[str, Any]],
    expected: Mapping[str, Mapping[str, Any]],
    *,
    exact: bool,
) -> list[str]:
    """What differs, as lines for a person.

    Args:
        exact: to the bit, tokens included; else within ``NOISE``, and tokens are not compared.
    """
    if sorted(found) != sorted(expected):
        return [f"steps {sorted(found)}, expected {sorted(expected)}"]
    lines = []
    for step, values in expected.items():
        for name, value in values.items():
            now = found[step].get(name)
            if exact or not isinstance(value, float | int):
                same = now == value or (exact is False and name == TOKENS)
            else:
                tolerances = {"rel_tol": NOISE["rel"], "abs_tol": NOISE["abs"]}
                same = isinstance(now, float | int) and math.isclose(now, value, **tolerances)
            if not same:
                lines.append(f"step {step}, {name}: {now!r}, expected {value!r}")
    return lines


def main() -> int:
    """Run the recipe and write the file."""
    from vapo_verl.digits.build import DigitsConfig, write_dataset

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        data = write_dataset(root / "data" / "digits", DigitsConfig(**NUM_ROWS))
        found = values_of(Smoke(root, data).run("regression", *OVERRIDES))
    content = {"machine": machine_kind(), "overrides": OVERRIDES, "steps": found}
    if FILE.exists():
        before = json.loads(FILE.read_text())
        for line in differences(found, before["steps"], exact=True) or ["no number has changed"]:
            print(line)
    FILE.write_text(json.dumps(content, indent=2) + "\n")
    print(f"wrote {FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
