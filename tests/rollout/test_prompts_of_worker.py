"""A validation's prompt is prepared once by an agent-loop worker."""

import torch
import transfer_queue
from omegaconf import OmegaConf

from vapo_verl.heartbeat import LoopLag
from vapo_verl.rollout.agent_loop_worker import VapoAgentLoopWorker
from vapo_verl.rollout.engine_inputs import PromptImages

UID = "000001-00000"
ALWAYS = ("vapo.anchors.gate=always", "vapo.anchors.num_anchors=2")


class OfOnePrompt(VapoAgentLoopWorker):
    """A worker of 2 answers to a row, without Ray and the models that a real one loads."""

    def __init__(self, processor):
        rollout = {"n": 5, "val_kwargs": {"n": 2}}
        reward = {"reward_model": {"enable": False}}
        self.config = OmegaConf.create(
            {"actor_rollout_ref": {"rollout": rollout}, "reward": reward}
        )
        self.processor, self.tokenizer = processor, processor.tokenizer
        self._in_flight, self._logged, self._lag = {}, set(), LoopLag()


async def test_samples_and_probes_of_a_validation_share_what_is_prepared(
    run_loop, dataset, server, processor, monkeypatch
):
    runs, requests, put = [], [], []
    call = type(processor).__call__
    base = VapoAgentLoopWorker.__bases__[0]

    def counted(self, *args, **kwargs):
        runs.append(kwargs["images"])
        return call(self, *args, **kwargs)

    async def respond(worker, sampling, trajectory, *, session_id, trace, **row):
        output = await run_loop(row, *ALWAYS, session_id=session_id)
        requests.extend(server.requests)
        worker._compute_multi_modal_inputs(output, torch.tensor([output.response_ids]))

    async def keep(**entry):
        put.append(entry)

    monkeypatch.setattr(type(processor), "__call__", counted)
    monkeypatch.setattr(base, "_run_agent_loop", respond)
    monkeypatch.setattr(transfer_queue, "async_kv_put", keep)
    server.opened.clear()
    server.closed.clear()
    worker = OfOnePrompt(processor)
    row = {**dataset[0], "uid": UID}
    await worker._run_prompt(row, {}, trajectory={"validate": True})
    assert [entry["partition_id"] for entry in put] == ["val"] * 2
    assert put[-1]["tag"] == {"status": "finished"}
    assert len(runs) == 1
    assert list(server.opened) == server.closed == [UID]
    assert {request["image_data"] for request in requests} == {PromptImages(key=UID)}
    assert len(requests) > 2  # the loops of the two run side by side
