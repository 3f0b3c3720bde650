"""veRL agent loop that generates a response, probes its anchors at once, and scores it.

The probes go to the server that just wrote the response, while other responses still decode:
they fill the idle tail of the batch and find their prefix in the KV cache.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from vapo_verl.anchors import (
    AnchorQuestion,
    AnchorResult,
    ProbeReply,
    SampleKey,
    bind_question,
    plan_anchors,
    probe_anchors,
)
from vapo_verl.config import VapoConfig, vapo_config
from vapo_verl.data.claims_column import Claim, read_claims
from vapo_verl.reward.accuracy import accuracy
from vapo_verl.reward.composition import RewardComponents, compose_reward
from vapo_verl.reward.format import format_score
from vapo_verl.reward.perception import attention_perception_score
from vapo_verl.rollout.one_server import OneServerClient
from vapo_verl.rollout.sample import SampleOutcome, anchored_perception, reward_extra_info

ANSWER_BIAS = 100.0
"""Added to the logits of yes and no in a probe, the most vLLM takes: no other token keeps any
probability. Not ``allowed_token_ids``: vLLM 0.24 leaks its mask to other requests of the batch
(``InputBatch.swap_states`` swaps tensor rows in place, ``condense`` leaves the moved row behind),
and responses that still decode then say yes and no in mid-sentence.
"""


class VapoAgentLoopOutput(AgentLoopOutput):
    """veRL's output with one float per response token: its visual attention ratio."""

    visual_attention: list[float] | None = None
    """Value t belongs to the query that produced token t; None where the engine exports none."""

    def as_dict(self) -> dict[str, Any]:
        """Fields of the replay buffer; ``visual_attention`` [response] is nan where unknown."""
        values = super().as_dict()
        values.pop("visual_attention", None)
        length = values["responses"].size(0)
        column = torch.full((length,), float("nan"), dtype=torch.float32)
        known = (self.visual_attention or [])[:length]
        column[: len(known)] = torch.tensor(known, dtype=torch.float32)
        values["visual_attention"] = column
        return values


def _take_attention(output: VapoAgentLoopOutput) -> None:
    """The server's values: their mean over layers as a field, and the layers for the samples."""
    values = output.extra_fields.pop("visual_attention", None)
    if values is None:
        return
    if values.ndim == 2:
        output.extra_fields["visual_attention_layers"] = values
        values = values.mean(axis=1)
    output.visual_attention = values.tolist()


class VapoAgentLoop(SingleTurnAgentLoop):
    """One turn of generation, then anchors, then the reward of Eq. 5."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._client = kwargs["server_manager"]
        self.vapo: VapoConfig = vapo_config(OmegaConf.to_container(self.config.vapo, resolve=True))  # type: ignore[arg-type]
        anchors = self.vapo.anchors
        self.question: AnchorQuestion = bind_question(
            self.tokenizer, anchors.question, anchors.yes_words, anchors.no_words
        )

    async def run(
        self, sampling_params: dict[str, Any], priority: int = 0, **row: Any
    ) -> VapoAgentLoopOutput:
        """Generate, probe and score one response of ``row`` (a row of the data set)."""
        key = SampleKey(
            seed=self.vapo.seed,
            step=int(row["global_steps"]),
            prompt_uid=str(row["prompt_uid"]),
            sample=int(row["session_id"]),
        )
        if self.vapo.seeded_sampling:
            sampling_params = {**sampling_params, "seed": key.sampling_seed()}
        self.server_manager = OneServerClient(self._client)
        generated = await super().run(sampling_params, priority, **row)
        output = VapoAgentLoopOutput(
            **{name: getattr(generated, name) for name in generated.model_fields_set}
        )
        _take_attention(output)
        await self._score(output, row, key)
        return output

    async def _score(
        self, output: VapoAgentLoopOutput, row: dict[str, Any], key: SampleKey
    ) -> None:
        text = self.tokenizer.decode(output.response_ids, skip_special_tokens=True)
        right = await self._accuracy(text, row["reward_model"])
        start = time.perf_counter()
        claims, skipped = self._askable(read_claims(row.get("claims")))
        results = await self._probe(output, claims, key) if self._is_probed(right) else []
        probe_s = time.perf_counter() - start
        outcome = SampleOutcome(
            reward=self._reward(right, format_score(text), results, output),
            anchors=results,
            response_length=len(output.response_ids),
            num_claims=len(claims),
            num_claims_skipped=skipped,
            probe_s=probe_s,
        )
        record = outcome.record()
        output.reward_score = outcome.reward.total
        output.extra_fields["vapo"] = record
        output.extra_fields["reward_extra_info"] = reward_extra_info(record)

    async def _accuracy(self, text: str, reference: dict[str, Any]) -> float:
        style = reference.get("style")
        style = style if style in ("exact", "math") else self.vapo.reward.answer_style
        return await self.loop.run_in_executor(
            None, accuracy, text, str(reference["ground_truth"]), style
        )

    def _is_probed(self, right: float) -> bool:
        return self.vapo.probes_claims and (self.vapo.anchors.gate == "always" or right == 1.0)

    def _askable(self, claims: Sequence[Claim]) -> tuple[list[Claim], int]:
        """The claims whose question fits the budget, and how many do not."""
        limit = self.vapo.anchors.max_claim_tokens
        fitting = [c for c in claims if len(self.question.token_ids(c.text)) <= limit]
        return fitting, len(claims) - len(fitting)

    async def _probe(
        self, output: VapoAgentLoopOutput, claims: Sequence[Claim], key: SampleKey
    ) -> list[AnchorResult]:
        settings = self.vapo.anchors
        anchors = plan_anchors(
            self._pieces(output.response_ids),
            claims,
            num_anchors=settings.num_anchors,
            placement=settings.placement,
            min_gap=settings.min_gap,
            rng=key.generator("anchors"),
        )
        media = output.multi_modal_data or {}
        if other := sorted(media.keys() - {"images"}):
            raise ValueError(
                f"this row has {', '.join(other)}: anchors are asked about images only; leave the "
                "row out, or set vapo.anchors.num_anchors=0"
            )
        sampling: dict[str, Any] = {
            "temperature": 1.0,  # the answer is the likelier token, whichever is drawn
            "max_tokens": 1,
            "logprobs": True,
            "logit_bias": {self.question.yes_id: ANSWER_BIAS, self.question.no_id: ANSWER_BIAS},
        }

        if self.vapo.seeded_sampling:
            # vLLM 0.24 on CPU ignores the seeds of a batch in which one request has none, and
            # a greedy request never has one (TopKTopPSampler.forward_cpu)
            sampling["seed"] = key.sampling_seed()

        async def ask(token_ids: list[int]) -> ProbeReply:
            reply = await self.server_manager.generate(
                "probe",
                prompt_ids=token_ids,
                sampling_params=dict(sampling),
                image_data=media.get("images"),
            )
            return ProbeReply(
                token_id=reply.token_ids[0],
                logprob=reply.log_probs[0],
                num_cached_tokens=reply.extra_fields.get("num_cached_tokens") or 0,
            )

        return await probe_anchors(
            ask, self.question, anchors, output.prompt_ids, output.response_ids
        )

    def _pieces(self, response_ids: Sequence[int]) -> list[str]:
        """Text of each response token, without the end-of-turn token."""
        ids = list(response_ids)
        if ids and ids[-1] == self.tokenizer.eos_token_id:
            ids.pop()
        return [self.tokenizer.decode([token_id]) for token_id in ids]

    def _reward(
        self,
        right: float,
        formatted: float,
        results: Sequence[AnchorResult],
        output: VapoAgentLoopOutput,
    ) -> RewardComponents:
        settings = self.vapo.reward
        if settings.perception_source == "claims":
            perception = anchored_perception(results, len(output.response_ids), settings)
        elif settings.perception_source == "attention":
            perception = attention_perception_score(
                output.visual_attention or [], settings.late_emphasis
            )
        else:
            perception = 0.0
        return compose_reward(
            right,
            formatted,
            perception,
            accuracy_weight=settings.accuracy_weight,
            format_weight=settings.format_weight,
            perception_weight=settings.perception_weight,
        )
