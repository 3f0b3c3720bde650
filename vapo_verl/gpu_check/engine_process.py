"""One vLLM engine in a process of its own, for `parity.py`.

``python -m vapo_verl.gpu_check.engine_process JOB RESULT``: both are pickles in a folder that
`parity.py` made. JOB has `engine` (its arguments), `batches` and `interface` (LLM or AsyncLLM). A
batch has `prompts`, the `params` of each, an `interrupt` and the level of a `sleep` before it.
RESULT has the `outputs` of every batch, and for LLM the numbers of `preemptions` and of `graphs`
that torch.compile made in this process.
"""

import asyncio
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch._dynamo.utils import counters
from vllm import LLM, AsyncEngineArgs, RequestOutput, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

NUM_TOKENS_BEFORE_INTERRUPT = 12


def with_llm(job: Mapping[str, Any]) -> dict[str, Any]:
    llm = LLM(**job["engine"], disable_log_stats=False)
    outputs = []
    for batch in job["batches"]:
        if batch["sleep"]:
            sleep_and_wake(llm, batch["sleep"])
        params = [SamplingParams(**x) for x in batch["params"]]
        outputs.append(llm.generate(batch["prompts"], params))
    counts = {metric.name: metric for metric in llm.get_metrics()}
    return {
        "outputs": outputs,
        "preemptions": counts["vllm:num_preemptions"].value,
        "graphs": counters["stats"]["unique_graphs"],
    }


def sleep_and_wake(llm: LLM, level: int) -> None:
    """As veRL does around an update: weights come back first, then the KV cache."""
    llm.sleep(level)
    llm.wake_up(["weights"])
    if level == 2:  # the weights are lost
        llm.collective_rpc("reload_weights")
    llm.wake_up(["kv_cache"])


async def with_async_llm(job: Mapping[str, Any]) -> dict[str, Any]:
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**job["engine"]))
    try:
        return {"outputs": [await run_batch(engine, batch) for batch in job["batches"]]}
    finally:
        engine.shutdown()


async def run_batch(engine: AsyncLLM, batch: Mapping[str, Any]) -> list[RequestOutput]:
    """Run all requests at once, and interrupt them when each of them has some tokens.

    `interrupt` is ``pause``: the engine aborts every request; ``abort``: every second request is
    aborted; None: nothing.
    """
    prompts, params, interrupt = batch["prompts"], batch["params"], batch["interrupt"]
    kind = RequestOutputKind.CUMULATIVE if interrupt else RequestOutputKind.FINAL_ONLY
    ids = [f"{interrupt}-{i}" for i in range(len(prompts))]
    under_way = [asyncio.Event() for _ in ids]

    async def run(i: int) -> RequestOutput:
        sampling = SamplingParams(**params[i], output_kind=kind)
        async for output in engine.generate(prompts[i], sampling, ids[i]):
            if len(output.outputs[0].token_ids) >= NUM_TOKENS_BEFORE_INTERRUPT:
                under_way[i].set()
        return output

    tasks = [asyncio.create_task(run(i)) for i in range(len(ids))]
    if interrupt:
        await asyncio.gather(*(event.wait() for event in under_way))
    if interrupt == "pause":
        await engine.pause_generation()
    elif interrupt == "abort":
        await engine.abort(ids[::2])
    outputs = await asyncio.gather(*tasks)
    if interrupt == "pause":
        await engine.resume_generation()
    return outputs


if __name__ == "__main__":
    job = pickle.loads(Path(sys.argv[1]).read_bytes())
    result = with_llm(job) if job["interface"] == "LLM" else asyncio.run(with_async_llm(job))
    Path(sys.argv[2]).write_bytes(pickle.dumps(result))
