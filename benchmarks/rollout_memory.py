"""Memory of the code that handles a prompt's images, over many steps of new images.

    python benchmarks/rollout_memory.py [--steps 30] [--out benchmarks/results/rollout_memory.json]

Each step has 4 prompts, each with an image of a megapixel, 4 responses and 32 probes. One process
does the work of an agent-loop worker and a server: the processor, the compact pixels and the
floats of the actor; vLLM's front end up to the bytes for the engine core. No engine runs.

Prints the resident set after each step, in MiB, and its slope from the fifth step on; `--out`
writes JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import rollout_scale
from benchmarks.counted_run import slope
from benchmarks.rollout_scale import ANSWER, LIMITS, PROBE, AutoProcessor, FrontEnd
from vapo_verl.data.compact_pixels import CompactPixels
from vapo_verl.digits.model import model_dir
from vapo_verl.rollout.engine_inputs import EngineInputs, PromptImages
from vapo_verl.rollout.prompts import model_inputs_of

PROMPTS, RESPONSES, PROBES = 4, 4, 32
TOKENS = 1008
SETTLED = 4
"""Steps until caches are full."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    if args.steps < SETTLED + 3:
        parser.error(f"--steps {args.steps}: a slope needs {SETTLED + 3} or more")
    rss_mib = asyncio.run(rss_of_steps(args.steps))
    result = {
        "command": f"python benchmarks/rollout_memory.py --steps {args.steps}",
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "image_tokens": TOKENS,
        "prompts_per_step": PROMPTS,
        "rss_mib": rss_mib,
        "slope_mib_per_step": round(slope(rss_mib[SETTLED:]), 2),
        "spread_mib": round(float(np.std(rss_mib[SETTLED:])), 1),
    }
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


async def rss_of_steps(steps: int) -> list[float]:
    """MiB after each step."""
    processor = AutoProcessor.from_pretrained(model_dir(), **LIMITS)
    renderer, front = rollout_scale.front_end_of_vllm()
    inputs = EngineInputs(renderer)  # one for all prompts, as in a server
    found = []
    for step in range(steps):
        for number in range(PROMPTS):
            prompt = FrontEnd(processor, renderer, front, TOKENS, seed=step * PROMPTS + number)
            prompt.inputs = inputs
            await handle(prompt, processor)
        del prompt
        gc.collect()
        found.append(round(resident_mib(), 1))
    return found


async def handle(prompt: FrontEnd, processor: Any) -> None:
    """A prompt in a worker, on its server and in the actor."""
    _, processed = rollout_scale.prompt_of(processor, prompt.image)
    inputs = model_inputs_of(processed, processor)
    assert inputs is not None and inputs.pixels is not None
    CompactPixels.from_plain(inputs.pixels.to_plain()).pixel_values()
    await prompt.open()
    for number in range(RESPONSES + PROBES):
        sampling = ANSWER if number < RESPONSES else PROBE
        await prompt.request(PromptImages(key="p"), [100] * number, sampling)
    prompt.inputs.close("p")


def resident_mib() -> float:
    """Resident memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


if __name__ == "__main__":
    main()
