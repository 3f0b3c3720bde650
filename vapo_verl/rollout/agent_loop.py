"""veRL agent loop that generates a response, probes its anchors at once, and scores it.

The probes go to the server that just wrote the response, while other responses still decode:
they fill the idle tail of the batch and find their prefix in the KV cache.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from pydantic import PrivateAttr
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from vapo_verl.anchors import (
    AnchorQuestion,
    AnchorResult,
    Probes,
    SampleKey,
    bind_question,
    plan_anchors,
    probe_anchors,
    token_texts,
)
from vapo_verl.anchors.question import ANSWER_BIAS, CheckReply, FormatCheck
from vapo_verl.config import ANSWER_STYLES, JUDGE_STYLE, VapoConfig, vapo_config
from vapo_verl.console import say
from vapo_verl.data.claims_column import Claim, read_claims
from vapo_verl.data.control_tokens import (
    tag_token_ids,
    tags_as_text,
    text_words,
    vision_token_ids,
)
from vapo_verl.data.rows import BENCHMARK_COLUMN
from vapo_verl.evaluation.benchmarks import Grade
from vapo_verl.evaluation.benchmarks.validation_rows import grade_cell
from vapo_verl.methods import Progress, method_of
from vapo_verl.reward.accuracy import accuracy
from vapo_verl.reward.components import (
    NUM_LAST_TOKENS,
    RewardComponents,
    compose_reward,
    format_score,
)
from vapo_verl.reward.perception import attention_perception_score
from vapo_verl.rollout.agent_loop_worker import failure_kind, reason_of
from vapo_verl.rollout.prober import OneServerClient, Prober, prompt_session
from vapo_verl.rollout.prompts import (
    PREPARED,
    OpenPrompt,
    PreparedPrompt,
    model_inputs_of,
    preparations,
    shared_prompt,
)
from vapo_verl.rollout.reward_function import RewardFunction
from vapo_verl.rollout.reward_judge import judge_response
from vapo_verl.rollout.sample import (
    RECORD_FIELD,
    Outcome,
    SampleRecord,
    SampleTimes,
    anchored_perception,
)
from vapo_verl.rollout.transfer import LAYERS_FIELD

CLAIMS_PER_LABEL = 4
"""Claims of each label that the format check asks, per row."""


class VapoAgentLoopOutput(AgentLoopOutput):
    """veRL's output with one float per response token: its visual attention ratio."""

    visual_attention: list[float] | None = None
    """Value t belongs to the query that produced token t, nan for a prompt without images and
    videos; None where the engine exports none."""
    visual_attention_layers: Any = None
    """float32 [response, layers], of which it is the mean; None without `per_layer`."""
    _prompt: OpenPrompt = PrivateAttr()

    @property
    def prompt(self) -> OpenPrompt:
        """Results that the responses to the prompt share; they stay in this process."""
        return self._prompt

    def as_dict(self) -> dict[str, Any]:
        """Fields of the replay buffer; ``visual_attention`` [response] is nan where unknown.

        ``visual_attention_layers`` is a list of one array or of none. It is a field of its own,
        because only the samples read it, and it is larger than all else of a response.
        """
        values = super().as_dict()
        length = values["responses"].size(0)
        column = torch.full((length,), float("nan"), dtype=torch.float32)
        known = (self.visual_attention or [])[:length]
        column[: len(known)] = torch.tensor(known, dtype=torch.float32)
        values["visual_attention"] = column
        layers = self.visual_attention_layers
        values[LAYERS_FIELD] = [] if layers is None else [layers]
        return values


def _take_attention(output: VapoAgentLoopOutput) -> None:
    """Split the server's values: their mean over layers as a field, the layers for the samples.

    The engine measures 0 where a prompt shows nothing. In training that is no value: a mean over
    rows of both kinds would fall with the fraction of rows without images.
    """
    values = output.extra_fields.pop("visual_attention", None)
    if values is None:
        return
    media = output.multi_modal_data or {}
    if not (media.get("images") or media.get("videos")):
        values = np.full_like(values, np.nan)
    if values.ndim == 2:
        output.visual_attention_layers = values
        values = values.mean(axis=1)
    output.visual_attention = values.tolist()


class VapoAgentLoop(SingleTurnAgentLoop):
    """One turn of generation, then anchors, then the reward of Eq. 5."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._client = kwargs["server_manager"]
        self._prepared: PreparedPrompt | None = None  # until `run`
        self.vapo: VapoConfig = vapo_config(OmegaConf.to_container(self.config.vapo, resolve=True))  # type: ignore[arg-type]
        self._method = method_of(self.vapo.method)
        anchors = self.vapo.anchors
        data = self.vapo.data
        controls = text_words(
            self.tokenizer,
            control_tokens=data.control_tokens,
            plain_think_tokens=data.plain_think_tokens,
            processor=self.processor,
        )
        self.question: AnchorQuestion = bind_question(
            self.tokenizer,
            anchors.question,
            anchors.yes_words,
            anchors.no_words,
            controls=controls,
        )
        self._vision_ids = frozenset(vision_token_ids(self.tokenizer))
        tags = tags_as_text(self.tokenizer, data.plain_think_tokens, self.processor)
        self._banned_ids = self._vision_ids.union(tag_token_ids(self.tokenizer, tags))

    async def run(
        self, sampling_params: dict[str, Any], priority: int = 0, **row: Any
    ) -> VapoAgentLoopOutput:
        """Generate, probe and score one response of ``row`` (a row of the data set)."""
        prompt = self.open_session(row)  # one loop is one response
        key = SampleKey(
            seed=self.vapo.seed,
            step=int(row["global_steps"]),
            prompt_uid=str(row["prompt_uid"]),
            sample=int(row["session_id"]),
        )
        if self.vapo.seeded_sampling:
            sampling_params = {**sampling_params, "seed": key.sampling_seed()}
        if self._banned_ids:
            bias = dict.fromkeys(self._banned_ids, -ANSWER_BIAS)
            sampling_params = {**sampling_params, "logit_bias": bias}
        started_at = time.time()
        self._prepared = await prompt.once(PREPARED, partial(self._prepare, row))
        await self._change_images(prompt, key)
        try:
            generated = await super().run(sampling_params, priority, **row)
            output = VapoAgentLoopOutput(
                **{name: getattr(generated, name) for name in generated.model_fields_set}
            )
            output._prompt = prompt
            _take_attention(output)
            self._drop_vision_tokens(output)
            await self._score(output, row, key, started_at)
        finally:
            await self.server_manager.scored()
        return output

    async def _change_images(self, prompt: OpenPrompt, key: SampleKey) -> None:
        """Use changed images if the method generates this response from them.

        The actor reads the prompt's own, see `VapoAgentLoopWorker._compute_multi_modal_inputs`.
        """
        assert self._prepared is not None
        progress = Progress(step=key.step, total_steps=_total_steps(self.config))
        if not (
            prompt.is_training
            and self._prepared.media.get("images")
            and self._method.changes_image(key.sample, self.rollout_config.n, progress)
        ):
            return
        changed = prompt.changed()
        make = partial(self._changed, self._prepared, key, progress)
        self._prepared = await changed.once(PREPARED, make)
        self.server_manager = OneServerClient(self._client, changed)

    async def _changed(
        self, prepared: PreparedPrompt, key: SampleKey, progress: Progress
    ) -> PreparedPrompt:
        def change() -> list[Image.Image]:
            rng = key.group_generator("changed image")
            arrays = [np.asarray(image.convert("RGB")) for image in prepared.media["images"]]
            return [
                Image.fromarray(self._method.changed_image(array, progress, rng))
                for array in arrays
            ]

        images = await self.loop.run_in_executor(None, change)
        return replace(prepared, media={**prepared.media, "images": images})

    def _drop_vision_tokens(self, output: VapoAgentLoopOutput) -> None:
        """Replace image and video tokens in the response, and take them out of the loss.

        They are banned when sampling. If one still occurs, the actor and the engine of a probe
        would look for the features of an image that does not exist.
        """
        for place, token_id in enumerate(output.response_ids):
            if token_id in self._vision_ids:
                output.response_ids[place] = self.tokenizer.pad_token_id
                output.response_mask[place] = 0

    def open_session(self, row: Mapping[str, Any]) -> OpenPrompt:
        """Send the next requests to the server of the row's prompt; returns the prompt."""
        prompt = shared_prompt(prompt_session(row))
        self.server_manager = OneServerClient(self._client, prompt)
        return prompt

    async def _score(
        self, output: VapoAgentLoopOutput, row: dict[str, Any], key: SampleKey, started_at: float
    ) -> None:
        generated_at = time.time()
        text = self.tokenizer.decode(output.response_ids, skip_special_tokens=True)
        prompt_end = self.tokenizer.decode(output.prompt_ids[-NUM_LAST_TOKENS:])
        grade = await self._benchmark_grade(text, row)
        outcome = (
            await self._outcome(text, prompt_end, row, output)
            if grade is None
            else Outcome.of(float(grade.correct or 0.0))
        )
        asked_at = time.time()
        claims, skipped = self.askable(read_claims(row.get("claims")))
        results = await self._probe(output, claims, key) if self._is_probed(outcome) else []
        probed_at = time.time() if results else asked_at
        image_end, num_images = self._images_in(output)
        record = SampleRecord(
            reward=self._reward(outcome, format_score(text, prompt_end), results, output),
            anchors=tuple(results),
            response_length=len(output.response_ids),
            num_claims=len(claims),
            num_claims_skipped=skipped,
            times=SampleTimes(
                started_at=started_at,
                generated_at=generated_at,
                asked_at=asked_at,
                probed_at=probed_at,
            ),
            image_end=image_end,
            num_images=num_images,
            min_policy_version=output.extra_fields.get("min_global_steps"),
            max_policy_version=output.extra_fields.get("max_global_steps"),
            probe_policy_version=self.server_manager.probe_version,
        )
        output.reward_score = record.reward.total
        output.extra_fields[RECORD_FIELD] = record.to_plain()
        info = {**record.reward_extra_info(), **outcome.info}
        if grade is not None:
            info["unparsed"] = float(grade.correct is None)
            info["truncated"] = float(len(output.response_ids) >= self.response_length)
        output.extra_fields["reward_extra_info"] = info

    async def _benchmark_grade(self, text: str, row: Mapping[str, Any]) -> Grade | None:
        """Grade a row of a benchmark file by the benchmark's rule; None for other rows."""
        if not (cell := row.get(BENCHMARK_COLUMN)):
            return None
        return await self.loop.run_in_executor(None, grade_cell, str(cell), text)

    async def _outcome(
        self, text: str, prompt_end: str, row: dict[str, Any], output: VapoAgentLoopOutput
    ) -> Outcome:
        """Score by the user's function if there is one, else by the row's style."""
        if (function := RewardFunction.of(self.config)) is not None:
            return await function.score(text, row, output.extra_fields)
        reference = row["reward_model"]
        style = reference.get("style")
        style = style if style in (*ANSWER_STYLES, JUDGE_STYLE) else self.vapo.reward.answer_style
        if style == JUDGE_STYLE:
            return await judge_response(self.vapo, row, text, prompt_end)
        return Outcome.of(
            await self.loop.run_in_executor(None, accuracy, text, reference["ground_truth"], style)
        )

    def _is_probed(self, outcome: Outcome) -> bool:
        return self.vapo.probes_claims and (self.vapo.anchors.gate != "correct" or outcome.correct)

    def askable(self, claims: Sequence[Claim]) -> tuple[list[Claim], int]:
        """The claims whose question fits the budget, and how many do not."""
        limit = self.vapo.anchors.max_claim_tokens
        fitting = [c for c in claims if len(self.question.token_ids(c.text)) <= limit]
        return fitting, len(claims) - len(fitting)

    async def _probe(
        self, output: VapoAgentLoopOutput, claims: Sequence[Claim], key: SampleKey
    ) -> list[AnchorResult]:
        settings = self.vapo.anchors
        paired = settings.is_paired
        anchors = plan_anchors(
            self._pieces(output.response_ids),
            claims,
            num_anchors=settings.num_anchors,
            placement=settings.placement,
            min_gap=settings.min_gap,
            rng=key.group_generator("anchors") if paired else key.generator("anchors"),
            paired=paired,
        )
        media = output.multi_modal_data or {}
        seed = key.sampling_seed() if self.vapo.seeded_sampling else None
        ask = self.prober().asker(media, seed)
        return await probe_anchors(
            ask, self.question, anchors, output.prompt_ids, output.response_ids
        )

    def prober(self) -> Prober:
        """A prober that asks the server of the open session."""
        return Prober(
            self.server_manager,
            self.question,
            max_tokens_in_flight=self.vapo.anchors.max_tokens_in_flight,
            by_priority=self.rollout_config.scheduling_policy == "priority",
            processor_options=self._get_mm_processor_kwargs(),
        )

    async def prompt(self, row: Mapping[str, Any]) -> tuple[list[int], dict[str, Any]]:
        """Prompt ids and media of a row of the data set, as veRL's loop makes them."""
        prepared = await self._prepare(row)
        return list(prepared.token_ids), dict(prepared.media)

    async def _prepare(self, row: Mapping[str, Any]) -> PreparedPrompt:
        """Open and process a row's images, in the pool of threads that veRL's own calls use."""
        async with preparations(self.vapo.rollout.prepare_workers):
            started_s = time.monotonic()
            messages = list(row["raw_prompt"])
            media = await super().process_multi_modal_info(messages)
            inputs: dict[str, Any] = {}
            token_ids = await super().ct_build_initial_tokens(
                messages,
                **{kind: media.get(kind) for kind in ("images", "videos", "audios")},
                mm_inputs_out=inputs,
            )
            model_inputs = await self.loop.run_in_executor(
                None, partial(model_inputs_of, inputs, self.processor)
            )
            return PreparedPrompt(
                token_ids=tuple(token_ids),
                media=media,
                model_inputs=model_inputs,
                seconds=time.monotonic() - started_s,
            )

    async def process_multi_modal_info(self, messages: list[dict]) -> dict:
        """The prompt's media, prepared once for all its responses."""
        if self._prepared is None:
            return await super().process_multi_modal_info(messages)
        return dict(self._prepared.media)

    async def ct_build_initial_tokens(self, *args: Any, **kwargs: Any) -> list[int]:
        """The prompt's tokens, prepared once for all its responses."""
        if self._prepared is None:
            return await super().ct_build_initial_tokens(*args, **kwargs)
        return list(self._prepared.token_ids)

    def _images_in(self, output: VapoAgentLoopOutput) -> tuple[int, int]:
        """Tokens up to the end of the prompt's last image, and how many images there are."""
        images = (output.multi_modal_data or {}).get("images") or ()
        pad = getattr(self.processor, "image_token_id", None)
        ends = [i + 1 for i, token_id in enumerate(output.prompt_ids) if token_id == pad]
        return (ends[-1] if ends else 0), len(images)

    def _pieces(self, response_ids: Sequence[int]) -> list[str]:
        """Text of each response token, without the end-of-turn token."""
        ids = list(response_ids)
        if ids and ids[-1] == self.tokenizer.eos_token_id:
            ids.pop()
        return token_texts(self.tokenizer, ids)

    def _reward(
        self,
        outcome: Outcome,
        formatted: float,
        results: Sequence[AnchorResult],
        output: VapoAgentLoopOutput,
    ) -> RewardComponents:
        settings = self.vapo.reward
        if settings.perception_source == "attention":
            perception = attention_perception_score(
                output.visual_attention or [], settings.late_emphasis
            )
        else:  # with `none` it is measured but not paid
            perception = anchored_perception(results, len(output.response_ids), settings)
        paid = settings.perception_source != "none"
        return compose_reward(
            outcome.score,
            formatted,
            perception,
            accuracy_weight=settings.accuracy_weight,
            format_weight=settings.format_weight,
            perception_weight=settings.perception_weight if paid else 0.0,
            gate=self.vapo.anchors.gate,
            correct=outcome.correct,
        )


def _total_steps(config: Any) -> int:
    """Steps of the run. veRL's schedule counts updates, of which `separate_async` has several a
    step."""
    trainers = config.trainer.v1
    of_mode = trainers.get(trainers.trainer_mode) or {}
    total: int = config.actor_rollout_ref.actor.optim.total_training_steps
    return total // of_mode.get("parameter_sync_step", 1)


async def run_format_check(
    loop: VapoAgentLoop, rows: Iterable[Mapping[str, Any]]
) -> FormatCheck | None:
    """Probe up to 4 true and 4 false claims of each row directly after its prompt.

    A row that fails is left out, as in training.

    Returns:
        None if no claim was asked.
    """
    replies: list[CheckReply] = []
    for number, row in enumerate(rows):
        try:
            replies += await _of_row(loop, row)
        except Exception as error:
            if failure_kind(error) != "row":
                raise
            say(f"WARNING: anchor format check: row {number} left out: {reason_of(error)}")
    return FormatCheck.of(replies) if replies else None


async def _of_row(loop: VapoAgentLoop, row: Mapping[str, Any]) -> list[CheckReply]:
    claims, _ = loop.askable(read_claims(row.get("claims")))
    chosen = [
        claim
        for label in (True, False)
        for claim in [c for c in claims if c.label is label][:CLAIMS_PER_LABEL]
    ]
    if not chosen:
        return []
    loop.open_session(row)
    question, prober = loop.question, loop.prober()
    prompt_ids, media = await loop.prompt(row)
    probes = Probes(
        token_ids=prompt_ids,
        cuts=[len(prompt_ids)] * len(chosen),
        questions=[question.token_ids(claim.text) for claim in chosen],
    )
    replies = await prober.asker(media)(probes)
    free = await prober.free_answers(probes, media)
    return [
        CheckReply(
            label=claim.label,
            p_yes=question.p_yes(reply.token_id, reply.logprob),
            free_token=loop.tokenizer.decode([token_id]),
            free_is_answer=token_id in question.answer_ids,
        )
        for claim, reply, token_id in zip(chosen, replies, free, strict=True)
    ]
