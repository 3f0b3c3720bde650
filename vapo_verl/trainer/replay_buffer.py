"""The replay buffer, which accounts for each response requested, and the trainer's reads of it."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from verl.trainer.ppo.v1.replay_buffer import (
    FILTER_GROUPS_REWARD_METRIC,
    ReplayBuffer,
    ReplayBufferAsync,
    _accumulate_eviction_metrics,
)
from verl.workers.utils.padding import response_from_nested, response_to_nested

from vapo_verl.console import say
from vapo_verl.methods import Method, Progress, StepTokens
from vapo_verl.rollout.agent_loop_worker import FAILURE_TAG, REASON_TAG
from vapo_verl.rollout.correction import mismatch
from vapo_verl.rollout.prompts import MASKED_LOG_PROBS, clear_prompts_except, uid_of
from vapo_verl.rollout.sample import RECORD_FIELD, SampleRecord
from vapo_verl.rollout.transfer import (
    KVBatchMeta,
    clear,
    column_values,
    read,
    register_prompts,
    tags_in,
    write,
)
from vapo_verl.trainer.metrics import failure_metrics

__all__ = [
    "CountedReplayBuffer",
    "CountedReplayBufferAsync",
    "ResponsesFailed",
    "StepResponses",
    "count_responses",
    "forget_trained",
    "logprob_mismatch",
    "method_metrics",
    "read_records",
    "read_responses",
    "read_visual_attention",
    "request_lost",
    "spread_padding",
    "take_masked_log_probs",
    "weigh_advantages",
    "zero_masked_advantages",
]


FAILED = "vapo/rollout/failed"
"""Metric: responses of the step that failed for a reason of their row."""
MIN_GROUP = 2
"""An advantage compares responses: a group with fewer left is dropped."""
MAX_RESTARTS = 3
"""Most restarts of servers for one step, or for one batch of a validation."""
_NUM_REASONS = 3


class ResponsesFailed(RuntimeError):
    """A step or a validation cannot go on with the responses that came; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseCount:
    """Outcome of the responses that were requested."""

    expected: int
    kept: list[int]
    """Positions of the responses to go on with."""
    row_failures: Counter[str]
    """Failures for a reason of the row, by reason."""
    system_failures: Counter[str]
    """The others, including responses that were never reported."""
    incomplete: dict[str, list[int]]
    """Prompts with responses that the system lost -> numbers of the responses that came."""

    @property
    def failed_fraction(self) -> float:
        """Fraction of the expected responses that failed for a reason of their row."""
        return self.row_failures.total() / max(self.expected, 1)


def count_responses(
    keys: Sequence[str],
    tags: Sequence[Mapping[str, Any]],
    expected: Mapping[str, int],
    num_groups: int,
    min_group: int = MIN_GROUP,
) -> ResponseCount:
    """Compare the responses that came with those requested.

    Args:
        keys: `{uid}_{sample}_{output}` of responses and of failures.
        expected: responses requested by uid; a uid that is absent expects those that came.
        num_groups: prompts requested.
        min_group: groups with fewer responses left are dropped.
    """
    failures: dict[str, Counter[str]] = {"row": Counter(), "system": Counter()}
    sessions: defaultdict[str, set[str]] = defaultdict(set)
    failed: dict[tuple[str, str], Mapping[str, Any]] = {}
    for key, tag in zip(keys, tags, strict=True):
        uid, session, _ = key.rsplit("_", 2)
        sessions[uid].add(session)
        if FAILURE_TAG in tag:
            failed[uid, session] = tag
    for tag in failed.values():
        failures[tag[FAILURE_TAG]][tag[REASON_TAG]] += 1

    asked = {uid: expected.get(uid, len(came)) for uid, came in sessions.items()}
    absent = (num_groups - len(sessions)) * max(expected.values(), default=1)
    lost = absent + sum(asked[uid] - len(came) for uid, came in sessions.items())
    if lost:
        failures["system"]["no answer and no error: its agent loop ended"] = lost

    left = {
        uid: sum((uid, session) not in failed for session in came) for uid, came in sessions.items()
    }
    there = {
        uid: [int(s) for s in came if failed.get((uid, s), {}).get(FAILURE_TAG) != "system"]
        for uid, came in sessions.items()
    }
    kept = []
    for position, key in enumerate(keys):
        uid, session, _ = key.rsplit("_", 2)
        if left[uid] >= min_group and (uid, session) not in failed:
            kept.append(position)
    return ResponseCount(
        expected=sum(asked.values()) + absent,
        kept=kept,
        row_failures=failures["row"],
        system_failures=failures["system"],
        incomplete={uid: sorted(done) for uid, done in there.items() if len(done) < asked[uid]},
    )


def folded(reasons: Counter[str]) -> str:
    """Reasons with their counts, most frequent first, in one line."""
    parts = [f"{count} x {reason}" for reason, count in reasons.most_common(_NUM_REASONS)]
    others = len(reasons) - len(parts)
    return "; ".join(parts) + (f"; and {others} other reasons" if others else "")


class CountedReplayBuffer(ReplayBuffer):
    """veRL's replay buffer, in which every response requested is trained on or accounted for.

    One failure for a reason of the system ends the step, which is not trained. If dead servers are
    restarted, the lost responses are requested again instead, once all others have come. Failures
    for a reason of their row are left out, up to a fraction of the responses; a group trains on its
    remaining responses.
    """

    refill_fn: Callable[[int], Any] | None
    """veRL's: requests that many more prompts."""

    def watch(
        self,
        *,
        interval_s: float,
        max_failed_fraction: float,
        expected: dict[str, int],
        ask_again: Callable[[str, Mapping[str, Sequence[int]]], bool] | None = None,
        max_num_gen_batches: int = 0,
        num_prompts: int = 0,
    ) -> None:
        """Set what veRL's constructor has no arguments for.

        Args:
            interval_s: time between two polls.
            expected: responses requested by prompt uid; settled entries are removed.
            ask_again: restarts dead servers and requests responses again, by partition and by
                prompts with the responses that came; false if no server is dead.
            max_num_gen_batches: batches of groups that the group filter may drop in a step before
                the run ends; 0 or less sets no limit.
            num_prompts: prompts of a batch.
        """
        self.poll_interval = interval_s
        self._max_failed_fraction, self._expected = max_failed_fraction, expected
        self._ask_again = ask_again
        self.num_failed = Counter[str]()
        """Failures for a reason of the row, by partition."""
        self._max_num_gen_batches, self._num_prompts = max_num_gen_batches, num_prompts
        self._filtering_step = 0
        self._filtered = Counter[float]()  # groups of that step, by the value of all responses
        if max_num_gen_batches > 0 and self.refill_fn is not None:
            self.refill_fn = partial(self._refill, self.refill_fn)

    def _refill(self, add_prompts: Callable[[int], Any], num_prompts: int) -> Any:
        """Request more prompts in the place of dropped ones.

        Raises:
            ResponsesFailed: the group filter has dropped too many in this step.
        """
        num_dropped, limit = self._filtered.total(), self._max_num_gen_batches
        if num_dropped > limit * self._num_prompts:
            values = ", ".join(f"{x:g}: {n}" for x, n in self._filtered.most_common(3))
            raise ResponsesFailed(
                f"the group filter has dropped {num_dropped} groups in step "
                f"{self._filtering_step}, more than algorithm.filter_groups.max_num_gen_batches="
                f"{limit} batches of {self._num_prompts} prompts: all responses to a prompt had "
                f"the same {self.filter_groups_metric} (groups by value: {values}). Check that "
                "correct answers count as correct (vapo.reward.answer_style, `vapo data grade "
                "FILE`) and that the rows are neither too hard nor too easy; or raise "
                "max_num_gen_batches (0: no limit)."
            )
        return add_prompts(num_prompts)

    def _evict_terminal_groups(
        self, global_steps: int, partition_id: str, eviction_reasons: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """Count, by step, the groups that the filter drops; veRL would drop them without end."""
        if self._filtering_step != global_steps:
            self._filtering_step, self._filtered = global_steps, Counter[float]()
        *_, by_value = eviction_reasons
        self._filtered.update(by_value)
        return super()._evict_terminal_groups(global_steps, partition_id, eviction_reasons)

    def _wait_for_next_poll(self, partition_id: str, last_debug_time: float) -> float:
        if self._ask_again is None:  # the step is lost: no need to wait for the others
            self._refuse_lost(self.partitions[partition_id].values())
        return super()._wait_for_next_poll(partition_id, last_debug_time)

    def _refuse_lost(self, tags: Iterable[Mapping[str, Any]]) -> None:
        reasons = Counter(tag[REASON_TAG] for tag in tags if _is_lost(tag))
        if reasons:
            raise ResponsesFailed(
                f"{reasons.total()} of {sum(self._expected.values())} responses failed so far: "
                f"{folded(reasons)}"
            )

    def sample(
        self, global_steps: int, partition_id: str, batch_size: int
    ) -> tuple[KVBatchMeta, dict[str, Any]]:
        """The responses to `batch_size` prompts.

        Raises:
            ResponsesFailed: one failed for a reason of the system, or too many for other reasons.
        """
        validates = partition_id == "val"
        min_group = 1 if validates else MIN_GROUP
        batch, metrics = super().sample(
            global_steps=global_steps, partition_id=partition_id, batch_size=batch_size
        )
        count = count_responses(batch.keys, batch.tags, self._expected, batch_size, min_group)
        for _ in range(MAX_RESTARTS):
            if not (count.incomplete and self._ask_again):
                break
            lost = [k for k, t in zip(batch.keys, batch.tags, strict=True) if _is_lost(t)]
            clear(lost, partition_id)
            if not self._ask_again(partition_id, count.incomplete):
                break
            again, more = super().sample(
                global_steps=global_steps,
                partition_id=partition_id,
                batch_size=len(count.incomplete),
            )
            batch = _replaced(batch, again, count.incomplete)
            _accumulate_eviction_metrics(metrics, more, _num_stale(more))
            count = count_responses(batch.keys, batch.tags, self._expected, batch_size, min_group)
        self._settle(batch)
        what = "the validation" if validates else f"step {global_steps}"
        self._check(count, what)
        num_failed = count.row_failures.total()
        self.num_failed[partition_id] += num_failed
        if num_failed:
            say(
                f"WARNING: {num_failed} of {count.expected} responses of {what} failed and are "
                f"left out: {folded(count.row_failures)}"
            )
        if not validates:
            reasons = failure_metrics(count.row_failures)
            metrics = {**metrics, FAILED: num_failed, **reasons}
        return _only(batch, count.kept), metrics

    def _dapo_filtered_keys(self, partition_id: str) -> Any:
        """Groups with failed rows too, by their remaining responses: veRL looks only at complete
        groups."""
        if self.filter_groups_metric is None:  # asked at every poll
            return super()._dapo_filtered_keys(partition_id)
        finished, entries = self.finished_keys[partition_id], self.partitions[partition_id]
        there = {key: tag for key, tag in entries.items() if FAILURE_TAG not in tag}
        lost = {uid_of(key) for key, tag in entries.items() if _is_lost(tag)}
        failed = self.failure_keys[partition_id] & set(map(uid_of, there)) - lost
        self.partitions[partition_id] = there
        self.finished_keys[partition_id] = finished | failed
        try:
            self._classify_groups(partition_id)
            return super()._dapo_filtered_keys(partition_id)
        finally:
            self.partitions[partition_id] = entries
            self.finished_keys[partition_id] = finished

    def _select_prompt_uids(
        self, partition_id: str, sampleable_keys: set[str], batch_size: int
    ) -> Any:
        """The oldest prompts first; those of a step in the order of their places in it."""
        return super()._select_prompt_uids(partition_id, sorted(sampleable_keys), batch_size)

    def _classify_groups(self, partition_id: str) -> None:
        """Find the finished groups whose responses all have one value, before veRL does.

        veRL asks for a standard deviation of 0, and that of five times 0.44 is 5.6e-17. Groups
        without the metric are left to veRL, which refuses them.
        """
        classified = self._dapo_classification_cache[partition_id]
        new = self.finished_keys[partition_id] - classified.keys()
        keys = [key for key in self.partitions[partition_id] if uid_of(key) in new]
        if not keys:
            return
        is_reward = self.filter_groups_metric == FILTER_GROUPS_REWARD_METRIC
        field = "rm_scores" if is_reward else "extra_fields"
        values = column_values(read(keys, partition_id, [field])[field])
        if is_reward:
            values = [scores.sum().item() for scores in values]
        else:
            infos = [extra.get("reward_extra_info") or {} for extra in values]
            values = [info.get(self.filter_groups_metric) for info in infos]
        groups: defaultdict[str, list[Any]] = defaultdict(list)
        for key, value in zip(keys, values, strict=True):
            groups[uid_of(key)].append(value)
        for uid, (first, *others) in groups.items():
            if first is not None and None not in others:
                are_equal = bool(others) and all(value == first for value in [first, *others])
                classified[uid] = float(first) if are_equal else None

    def _settle(self, batch: KVBatchMeta) -> None:
        """Remove the expectations of this batch, and of prompts that veRL has dropped."""
        waiting = {uid for prompts in self.prompt_global_steps.values() for uid in prompts}
        waiting -= set(map(uid_of, batch.keys))
        for uid in self._expected.keys() - waiting:
            del self._expected[uid]

    def _check(self, count: ResponseCount, what: str) -> None:
        num_lost = count.system_failures.total()
        if num_lost:
            raise ResponsesFailed(
                f"{num_lost} of {count.expected} responses of {what} failed: "
                f"{folded(count.system_failures)}"
            )
        if count.failed_fraction > self._max_failed_fraction or not count.kept:
            raise ResponsesFailed(
                f"{count.row_failures.total()} of {count.expected} responses of {what} failed, "
                f"more than vapo.rollout.max_failed_fraction={self._max_failed_fraction} of them: "
                f"{folded(count.row_failures)}"
            )


def _num_stale(metrics: Mapping[str, Any]) -> int:
    return sum(n for key, n in metrics.items() if key.endswith("/off_policy/evicted_samples"))


def _is_lost(tag: Mapping[str, Any]) -> bool:
    return tag.get(FAILURE_TAG) == "system"


def _replaced(batch: KVBatchMeta, again: KVBatchMeta, uids: Collection[str]) -> KVBatchMeta:
    """The batch with all entries of these prompts from `again`."""
    old = [i for i, key in enumerate(batch.keys) if uid_of(key) not in uids]
    return KVBatchMeta(
        partition_id=batch.partition_id,
        keys=[*(batch.keys[i] for i in old), *again.keys],
        tags=[*(batch.tags[i] for i in old), *again.tags],
    )


class CountedReplayBufferAsync(CountedReplayBuffer, ReplayBufferAsync):
    """The same over veRL's asynchronous buffer, which holds prompts of several steps.

    The rule for failures is that of a synchronous step: a group is sampled with its remaining
    responses. veRL would drop it and ask another prompt.
    """

    def _terminal_eviction_reasons(self, global_steps: int, partition_id: str) -> tuple[Any, ...]:
        stale, without_signal, _, counts = super()._terminal_eviction_reasons(
            global_steps, partition_id
        )
        return stale, without_signal, set(), counts

    def _stale_terminal_keys(self, global_steps: int, partition_id: str) -> set[str]:
        """Stale prompts, including those with failures, which veRL would drop at any age.

        Raises:
            ResponsesFailed: one of them failed for a reason of the system.
        """
        stale = super()._stale_terminal_keys(global_steps, partition_id)
        if self.max_off_policy_threshold is None or self.max_off_policy_strategy != "drop":
            return stale
        oldest = global_steps - self.max_off_policy_threshold + 1
        asked_at = self.prompt_global_steps[partition_id]
        failed = {uid for uid in self.failure_keys[partition_id] if asked_at[uid] < oldest}
        entries = self.partitions[partition_id].items()
        self._refuse_lost(tag for key, tag in entries if uid_of(key) in failed)
        return stale | failed


def _only(batch: KVBatchMeta, kept: Sequence[int]) -> KVBatchMeta:
    """The entries at `kept`; the others are removed from the replay buffer."""
    if len(kept) == len(batch.keys):
        return batch
    gone = sorted({*batch.keys} - {batch.keys[i] for i in kept})
    clear(gone, batch.partition_id)
    return KVBatchMeta(
        partition_id=batch.partition_id,
        keys=[batch.keys[i] for i in kept],
        tags=[batch.tags[i] for i in kept],
    )


def forget_trained(partition_id: str) -> None:
    """Remove responses whose prompt is gone, and the data that the responses to it shared.

    An asynchronous checkpoint holds the responses of the step that it was saved in. They have been
    trained on: veRL removes their prompts when it samples them, but the responses only after the
    checkpoint. A resumed run and its checkpoints would keep them.
    """
    tags = tags_in(partition_id)
    prompts = {key for key, tag in tags.items() if tag.get("is_prompt")}
    clear([key for key in tags.keys() - prompts if uid_of(key) not in prompts], partition_id)
    clear_prompts_except(prompts)


def request_lost(partition_id: str, step: int) -> None:
    """Make prompts pending again whose responses the system lost: veRL then requests them again.

    A failure of the system ends a run at the step that samples the prompt. Until then, an
    asynchronous checkpoint holds the failure, and each resume from it would end in the same way.

    Args:
        step: the first step of the resumed run.
    """
    tags = tags_in(partition_id)
    lost = {uid_of(key) for key, tag in tags.items() if _is_lost(tag)}
    responses = [key for key, tag in tags.items() if not tag.get("is_prompt")]
    clear([key for key in responses if uid_of(key) in lost], partition_id)
    if lost:
        register_prompts(sorted(lost), partition_id, step)


def spread_padding(is_padding: Sequence[bool], num_ranks: int) -> list[int]:
    """An order of the rows in which each rank's padding has equal distances among its rows.

    A rank divides its rows into mini-batches in their order. With all padding at the end, the few
    responses of the last mini-batch would decide an update alone.

    Args:
        is_padding: of each row; the rows of a rank follow each other, equally many on each rank.

    Returns:
        Positions of the rows in the new order: each stays on its rank, and in order among its kind.
    """
    size = len(is_padding) // num_ranks
    order: list[int] = []
    for first in range(0, len(is_padding), size):
        rows = range(first, first + size)
        padding = iter([row for row in rows if is_padding[row]])
        others = iter([row for row in rows if not is_padding[row]])
        num_padding = sum(is_padding[row] for row in rows)
        for place in range(size):
            is_next = (place + 1) * num_padding // size > place * num_padding // size
            order.append(next(padding if is_next else others))
    return order


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResponses:
    """The responses of a step, without padding rows, in the order of `keys`."""

    keys: list[str]
    asked_at: list[int]
    """Step at which each was requested."""
    group_ids: list[str]
    """Equal for responses to the same prompt."""
    records: list[SampleRecord]
    infos: list[Mapping[str, Any]]
    """Reward information of each response beside its score, under veRL's names."""
    visual_attention: torch.Tensor
    """[B, T], nan where unknown."""
    response_mask: torch.Tensor
    """[B, T]"""


def read_responses(batch: KVBatchMeta) -> StepResponses:
    """Read the data that the metrics of a step are computed from."""
    tags = {
        key: tag
        for key, tag in zip(batch.keys, batch.tags, strict=True)
        if not tag.get("is_padding")
    }
    keys = list(tags)
    fields = ["uid", "extra_fields", "visual_attention", "response_mask"]
    data = read(keys, batch.partition_id, fields)
    extras = column_values(data["extra_fields"])
    return StepResponses(
        keys=keys,
        asked_at=[tag["global_steps"] for tag in tags.values()],
        group_ids=column_values(data["uid"]),
        records=[SampleRecord.from_plain(extra[RECORD_FIELD]) for extra in extras],
        infos=[extra.get("reward_extra_info") or {} for extra in extras],
        visual_attention=data["visual_attention"].to_padded_tensor(float("nan")),
        response_mask=data["response_mask"].to_padded_tensor(0),
    )


def logprob_mismatch(batch: KVBatchMeta) -> dict[str, float]:
    """:func:`vapo_verl.rollout.correction.mismatch` of a step, before a rejection changes masks."""
    fields = ["old_log_probs", "rollout_log_probs", "response_mask"]
    data = read(batch.keys, batch.partition_id, fields)
    return mismatch(*(data[field].to_padded_tensor(0) for field in fields))


def read_visual_attention(batch: KVBatchMeta) -> torch.Tensor:
    """Ratios [B, T] in the order of ``batch.keys``, nan where unknown.

    T is the width of the padded ``response_mask``, with which veRL calls an estimator.
    """
    data = read(batch.keys, batch.partition_id, ["response_mask", "visual_attention"])
    width = data["response_mask"].to_padded_tensor(0).size(1)
    return fit_width(data["visual_attention"].to_padded_tensor(float("nan")), width)


def read_records(batch: KVBatchMeta) -> list[SampleRecord | None]:
    """The record of each of ``batch.keys``; None for a padding row, which copies another's."""
    data = read(batch.keys, batch.partition_id, ["extra_fields"])
    return [
        None if tag.get("is_padding") else SampleRecord.from_plain(extra[RECORD_FIELD])
        for tag, extra in zip(batch.tags, column_values(data["extra_fields"]), strict=True)
    ]


def take_masked_log_probs(batch: KVBatchMeta) -> None:
    """Store the log probs that the actor has just computed on masked images, by their own name."""
    data = read(batch.keys, batch.partition_id, ["log_probs", "response_mask"])
    column = response_from_nested(data["log_probs"], data["response_mask"])
    fields = TensorDict({MASKED_LOG_PROBS: column}, batch_size=len(batch.keys))
    write(batch.keys, batch.partition_id, fields)


def weigh_advantages(batch: KVBatchMeta, method: Method) -> dict[str, float]:
    """Multiply a step's advantages by a method's weights; returns its metrics."""
    fields = ["uid", "response_mask", "visual_attention", "old_log_probs", "advantages"]
    if method.mask_fraction:
        fields.append(MASKED_LOG_PROBS)
    data = read(batch.keys, batch.partition_id, fields)
    padded = {name: data[name].to_padded_tensor(0) for name in fields[1:] if name != fields[2]}
    mask = padded["response_mask"].bool()
    attention = data["visual_attention"].to_padded_tensor(float("nan"))
    weights, metrics = method.token_weights(
        StepTokens(
            group_ids=column_values(data["uid"]),
            response_mask=mask,
            visual_attention=fit_width(attention, mask.size(1)),
            old_log_probs=padded["old_log_probs"],
            masked_log_probs=padded.get(MASKED_LOG_PROBS),
        )
    )
    advantages = padded["advantages"]
    weighed = (advantages.double() * weights).to(advantages.dtype)
    column = response_to_nested(weighed, data["response_mask"])
    write(batch.keys, batch.partition_id, TensorDict({"advantages": column}, len(batch.keys)))
    return metrics


def zero_masked_advantages(batch: KVBatchMeta) -> None:
    """Set a step's advantages and returns to 0 where the response mask is 0.

    veRL multiplies by the mask, and 0 times nan is nan: `opo` divides by the tokens of a group, 0
    for padding rows and for a prompt whose responses are all rejected. One nan skips the update.
    """
    names = ["advantages", "returns"]
    data = read(batch.keys, batch.partition_id, ["response_mask", *names])
    lengths = data["response_mask"]
    mask = lengths.to_padded_tensor(0).bool()
    columns = {
        name: response_to_nested(data[name].to_padded_tensor(0).masked_fill(~mask, 0), lengths)
        for name in names
    }
    write(batch.keys, batch.partition_id, TensorDict(columns, len(batch.keys)))


def method_metrics(
    step: StepResponses, method: Method, group_size: int, total_steps: int
) -> dict[str, float]:
    """Metrics of a method from the responses to prompts with images; it may change only these."""
    seen = [
        (
            int(key.rsplit("_", 2)[1]),
            record.reward.accuracy,
            Progress(step=asked_at, total_steps=total_steps),
        )
        for key, record, asked_at in zip(step.keys, step.records, step.asked_at, strict=True)
        if record.num_images
    ]
    samples, accuracies, asked = zip(*seen, strict=True) if seen else ((), (), ())
    return method.response_metrics(samples, accuracies, group_size, asked)


def fit_width(values: torch.Tensor, width: int) -> torch.Tensor:
    """``values`` [B, T'] cut or filled with nan to [B, width].

    veRL's padding rows copy a real row's extra fields at that row's length, whatever their own.
    """
    if values.size(1) >= width:
        return values[:, :width]
    return torch.nn.functional.pad(values, (0, width - values.size(1)), value=float("nan"))
