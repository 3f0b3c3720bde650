"""The settings under ``vapo.*``: their meaning, their defaults and their limits, in one place.

YAML holds overrides only. :func:`vapo_config` turns the composed node into these frozen
dataclasses and refuses what cannot work, naming the key, the value and the fix.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

PLACEMENTS = ("random", "relative", "uniform", "front", "back")
PAIRINGS = ("independent", "group")
GATES = ("correct", "always", "relaxed")
PERCEPTION_SOURCES = ("claims", "attention", "none")
ATTENTION_MODES = ("focus", "grounded")
NORMALIZATIONS = ("total", "decoupled")
ANSWER_STYLES = ("exact", "math", "choice", "text")
"""How an answer is compared: see :func:`vapo_verl.reward.accuracy.accuracy`."""
JUDGE_STYLE = "judge"
"""In training, a language model decides about the answer: see ``vapo.reward.judge``."""
MAX_NUMBER = 10**9
"""Limit of integers: a larger value is a typing error."""
MAX_ANCHORS, MAX_BINS = 10_000, 10_000
DEFAULT_MAX_SPANS, MAX_SPANS = 32, 4096
"""Of a prompt's runs of visual tokens; the engine keeps as many pairs for each of its requests."""
MAX_POLL_S = 60.0
MAX_JUDGE_CONCURRENCY, MAX_JUDGE_RETRIES = 4096, 1000
MAX_TIMEOUT_S = 86_400.0
"""One day: no run recovers after a longer wait."""
CONSOLES = ("short", "full")
SYNC, COLOCATED, SEPARATE = "vapo", "vapo_colocate_async", "vapo_separate_async"
"""Values of ``trainer.v1.trainer_mode``."""
NULLABLE = ("temperature",)
"""Settings that may be null, besides ``layers``."""
CONTROL_TOKENS = ("refuse", "text")
PLAIN_THINK_TOKENS = ("auto", "true", "false")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorConfig:
    """Where a finished response is cut, and how a claim is asked there."""

    num_anchors: int = 20
    """K, the anchors per response. 0 turns the probes off: plain GRPO."""
    placement: str = "random"
    """How the cuts are chosen among the logical boundaries: ``random``; ``relative`` (at random
    fractions of the reasoning); ``uniform``; ``front`` or ``back``."""
    pairing: str = "independent"
    """``independent``: every response draws its own claims and cuts, as in the paper. ``group``:
    the responses to one prompt get the same claims at the same fractions of their reasoning, so
    that R_perc differs by what they wrote."""
    min_gap: int = 4
    """Smallest distance of two cuts, in tokens. The paper does not give one."""
    gate: str = "correct"
    """``correct``: only correct answers are probed. ``always``: all are, for diagnostics, but the
    reward counts the perception score of correct answers only. ``relaxed``: all are probed and
    earn the score, the paper's ablation without the gate of Eq. 5."""
    question: str = "\n<anchor>{claim} Is this claim correct? Answer (Yes/No):"
    """Asked at each cut. Must not end with a space: for Qwen's tokenizers that space is a token of
    its own and spoils the answer."""
    yes_words: tuple[str, ...] = (" Yes", "Yes")
    """Candidates for a positive answer; the first that is one token after the question is used."""
    no_words: tuple[str, ...] = (" No", "No")
    """Candidates for the negative answer, tried in order like ``yes_words``."""
    max_claim_tokens: int = 64
    """Tokens kept free in the context for one claim with its question; longer ones are skipped."""
    max_tokens_in_flight: int = 131_072
    """Limit of tokens in the KV cache for probes in flight, per agent-loop worker: a response with
    its prompt once, and its questions. It keeps probes from crowding out responses that still
    decode; 0 is no limit."""
    self_test_rows: int = 8
    """Training rows whose claims are asked before the first step, to test the question's format; 0
    skips the test."""

    @property
    def is_paired(self) -> bool:
        """Whether the responses to one prompt get the same claims."""
        return self.pairing == "group"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig:
    """An LLM judge that grades answers of the style ``judge``. Its API key is read from
    OPENAI_API_KEY only."""

    model: str = ""
    """Model name at the endpoint; empty: there is no judge."""
    base_url: str = ""
    """OpenAI-compatible address, as http://HOST:PORT/v1; empty: OPENAI_BASE_URL, else OpenAI's."""
    temperature: float | None = 0.0
    """Of its replies; null: the endpoint's own, for models that accept no other."""
    max_tokens: int = 2048
    """Of one reply, thinking included; a reply that is cut off decides nothing."""
    max_concurrency: int = 16
    """Concurrent requests of each agent-loop worker."""
    timeout_s: float = 60.0
    """Of one request."""
    max_retries: int = 4
    """Retries of a request after transient errors; after the last one the response has failed."""
    cache_dir: str = ""
    """Folder that caches decisions across runs; empty caches them in memory, for this run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """R = R_acc + R_fmt + gamma * 1[R_acc = 1] * R_perc, each part weighted (Eq. 5)."""

    accuracy_weight: float = 1.0
    format_weight: float = 1.0
    perception_weight: float = 0.1
    """gamma of Eq. 5."""
    late_emphasis: float = 1.5
    """beta of Eq. 4: how much more a late anchor counts than an early one."""
    chance_corrected: bool = False
    """Map R_perc to max((R_perc - 0.5) / 0.5, 0), as the released code does."""
    soft: bool = False
    """Score an anchor by the probability of the correct answer instead of 0 or 1."""
    perception_source: str = "claims"
    """``claims``: the anchors. ``attention``: the mean visual attention (ablation of table 10).
    ``none``: no perception reward."""
    answer_style: str = "math"
    """How an answer is compared when a row does not say: ``exact``, ``math``, ``choice``, ``text``
    or ``judge``."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionConfig:
    """Export of the visual attention ratio of every generated token."""

    enabled: bool = False
    layers: str | tuple[int, ...] | None = None
    """Decoder layers that are averaged: a list of indices, ``all``, or none for one in 8 (at
    least two), evenly spaced. The cost of the export grows with their number."""
    per_layer: bool = False
    """Keep the layers apart in the sampled rollouts; the mean is used everywhere else."""
    max_spans: int = DEFAULT_MAX_SPANS
    """Runs of visual tokens a prompt may have; with more its values are nan. An image is one run, a
    video one or, for Qwen3-VL, one per pair of frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageConfig:
    """The credit of each token (see docs/estimator.md)."""

    normalization: str = "total"
    """``total``: the group's rewards are normalised, as in the paper. ``decoupled``: accuracy with
    format is normalised by itself, and perception among the responses that pass the gate. Then
    gamma is the weight of perception in every group."""
    attention_coef: float = 0.0
    """c in [0, 1): how far visual attention moves credit between a response's tokens. 0 is GRPO."""
    attention_mode: str = "focus"
    normalize_by_std: bool = True
    """Divide by the standard deviation of the group's rewards, as GRPO; off is Dr.GRPO.
    ``algorithm.norm_adv_by_std_in_grpo`` follows it, for veRL's own estimators."""
    num_bins: int = 8
    """Bins of relative progress in which a group's mean attention is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodConfig:
    """A method of another paper, in place of or beside the perception reward (docs/methods.md)."""

    name: str = "none"
    """``none``, one of :data:`vapo_verl.methods.METHODS`, or the import path of a user's class."""
    options: dict[str, Any] = field(default_factory=dict)
    """Its own settings; their defaults and meanings are in its file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """How the text of rows is read."""

    control_tokens: str = "refuse"
    """Rows whose question or claims hold a control token of the tokenizer, such as `<|im_end|>`.
    ``refuse``: the run does not start. ``text``: the token is encoded as its characters."""
    plain_think_tokens: str = "auto"
    """Whether `<think>` and `</think>` are encoded as their characters where the tokenizer has
    tokens for them. ``auto``: where the chat template never writes them, as in Qwen3-VL-Instruct,
    which was not trained on them (docs/models.md). ``true``, ``false``: always, never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggingConfig:
    """Console output of a run, and what a step writes to the run folder beside its metrics."""

    console: str = "short"
    """``short``: start-up phases, a line per step, warnings and results. ``full``: the output of
    all processes, which ``console.log`` in the run folder has either way."""
    num_rollout_samples: int = 8
    """Responses a step writes to ``rollouts/``; 0 writes none."""
    rollout_freq: int = 1
    """Steps between two writes of samples."""
    report_freq: int = 10
    """Steps between two uploads of the report's key figures to Weights & Biases and TensorBoard, as
    images; the last step uploads, too. 0 uploads none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DebugConfig:
    """Run a step's rollouts and its training separately (docs/replay.md)."""

    save_rollouts: str = ""
    """Folder where the batch of every step is saved; empty: none is saved."""
    train_only: str = ""
    """Folder of saved batches to train on, without an engine; empty: responses are generated."""
    rollout_only: bool = False
    """Generate and score the responses of each step; the weights stay as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    """What a run does about responses that fail and processes that hang or die."""

    timeout_s: float = 300.0
    """The run ends when a phase makes no progress for this long, and names the process."""
    max_failed_fraction: float = 0.1
    """The run ends when more than this fraction of a step's responses fail because of their rows:
    an image that cannot be read, a prompt that is too long, an error of the reward."""
    prepare_workers: int = 4
    """Prompts whose images an agent-loop worker opens and processes at the same time, each in a
    thread. There are ``actor_rollout_ref.rollout.agent.num_workers`` such workers."""
    restart_servers: bool = False
    """Restart a rollout server that dies in a rollout or a validation, and request the missing
    responses again. If false, its death ends the run, and the same command resumes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VapoConfig:
    """All of ``vapo.*``."""

    recipe: str = ""
    """Name of the recipe, for the record: the command line sets it."""
    seed: int = 0
    """Seed of anchors and, with ``seeded_sampling``, of the sampled tokens."""
    seeded_sampling: bool = False
    """Give every request its own sampling seed: a run can be repeated, at some cost on GPU."""
    allow_sdpa: bool = False
    """On a GPU without flash-attn, train with sdpa on padded sequences in micro-batches of two;
    if this is false, such a run is refused. It changes nothing with flash-attn, or on CPU."""
    accept_changes: tuple[str, ...] = ()
    """Keys of model, data, seed and reward in which this command may differ from the run in its
    folder; a resume with any other such change is refused. See docs/run_folder.md."""
    replay_poll_s: float = 0.2
    """Seconds between two polls of the replay buffer for finished responses (veRL: 2 s, no key)."""
    keep_best: str = ""
    """Validation metric, as ``val/digits/accuracy``: the checkpoint with its highest value is kept
    beside the newest ones. Empty keeps the newest ones only."""
    data: DataConfig = field(default_factory=DataConfig)
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)

    @property
    def probes_claims(self) -> bool:
        """Whether responses are probed at all."""
        wants = self.reward.perception_source == "claims" or self.anchors.gate != "correct"
        return wants and self.anchors.num_anchors > 0


Section = TypeVar("Section")


def vapo_config(node: Mapping[str, Any] | None) -> VapoConfig:
    """The checked settings of a plain mapping (``OmegaConf.to_container(config.vapo)``).

    Raises:
        ValueError: an unknown key or a value out of its range, with the key, the value and the fix.
    """
    config = section(VapoConfig, dict(node or {}), "vapo")
    _check(config)
    return config


def flat(config: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of a nested mapping; an empty group is a value."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{key}.")
        else:
            found[key] = value
    return found


def value_at(values: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """The value of a dotted key; `default` where it or a group above it is absent."""
    found: Any = values
    for name in key.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return default
        found = found[name]
    return found


def is_within(key: str, groups: Iterable[str]) -> bool:
    """Whether a dotted key is one of `groups`, or below one of them."""
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def section(cls: type[Section], values: Mapping[str, Any], path: str) -> Section:
    """A settings dataclass from plain values, each of the type of its default.

    Args:
        path: the key of the group, for messages.

    Raises:
        ValueError: an unknown key or a value of another type, with the key, the value and the fix.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ValueError(
                f"{path}.{key} is not a setting; use one of {', '.join(sorted(fields))}"
            )
    return cls(
        **{key: _value(fields[key], value, f"{path}.{key}") for key, value in values.items()}
    )


def _value(spec: dataclasses.Field[Any], value: Any, path: str) -> Any:
    default = _default(spec)
    if dataclasses.is_dataclass(default):
        if not isinstance(value, Mapping):
            raise ValueError(f"{path}={value!r} is not a group of settings")
        return section(type(default), value, path)
    if spec.name == "layers":
        if value is None or value == "all":
            return value
        return _items(value, path, int)
    if isinstance(default, tuple):
        return _items(value, path, str)
    if value is None and spec.name in NULLABLE:
        return None
    expected = type(default)
    if spec.name == "plain_think_tokens" and isinstance(value, bool):
        value = str(value).lower()  # as YAML and Hydra read true and false
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = _to_float(value, path)
    if type(value) is not expected:
        raise ValueError(f"{path}={value!r} is a {type(value).__name__}; set a {expected.__name__}")
    if expected is int and abs(value) > MAX_NUMBER:
        raise ValueError(f"{path} is far out of range; set at most {MAX_NUMBER}")
    return value


def _to_float(value: int, path: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{path} is far out of range; set a smaller number") from error


def _default(spec: dataclasses.Field[Any]) -> Any:
    if spec.default_factory is not dataclasses.MISSING:
        return spec.default_factory()
    return spec.default


def _items(value: Any, path: str, kind: type) -> tuple[Any, ...]:
    if isinstance(value, str | Mapping) or not hasattr(value, "__iter__"):
        raise ValueError(f"{path}={value!r} is not a list; write it as [a, b]")
    for item in value:
        if type(item) is not kind:
            raise ValueError(f"{path}: {item!r} is a {type(item).__name__}; set a {kind.__name__}")
    return tuple(value)


def _check(config: VapoConfig) -> None:
    anchors, reward, advantage = config.anchors, config.reward, config.advantage
    _one_of("vapo.anchors.placement", anchors.placement, PLACEMENTS)
    _one_of("vapo.anchors.pairing", anchors.pairing, PAIRINGS)
    _one_of("vapo.anchors.gate", anchors.gate, GATES)
    _one_of("vapo.reward.perception_source", reward.perception_source, PERCEPTION_SOURCES)
    _one_of("vapo.reward.answer_style", reward.answer_style, (*ANSWER_STYLES, JUDGE_STYLE))
    judge = reward.judge
    if judge.temperature is not None:
        _at_least("vapo.reward.judge.temperature", judge.temperature, 0)
    _at_least("vapo.reward.judge.max_tokens", judge.max_tokens, 1)
    _at_least("vapo.reward.judge.max_concurrency", judge.max_concurrency, 1)
    _at_most("vapo.reward.judge.max_concurrency", judge.max_concurrency, MAX_JUDGE_CONCURRENCY)
    _at_least("vapo.reward.judge.max_retries", judge.max_retries, 0)
    _at_most("vapo.reward.judge.max_retries", judge.max_retries, MAX_JUDGE_RETRIES)
    _at_least("vapo.reward.judge.timeout_s", judge.timeout_s, 0.1)
    _at_most("vapo.reward.judge.timeout_s", judge.timeout_s, MAX_TIMEOUT_S)
    _one_of("vapo.data.control_tokens", config.data.control_tokens, CONTROL_TOKENS)
    _one_of("vapo.data.plain_think_tokens", config.data.plain_think_tokens, PLAIN_THINK_TOKENS)
    _one_of("vapo.logging.console", config.logging.console, CONSOLES)
    _one_of("vapo.advantage.attention_mode", advantage.attention_mode, ATTENTION_MODES)
    _one_of("vapo.advantage.normalization", advantage.normalization, NORMALIZATIONS)
    _at_least("vapo.anchors.num_anchors", anchors.num_anchors, 0)
    _at_most("vapo.anchors.num_anchors", anchors.num_anchors, MAX_ANCHORS)
    _at_least("vapo.anchors.min_gap", anchors.min_gap, 1)
    _at_least("vapo.anchors.max_claim_tokens", anchors.max_claim_tokens, 1)
    _at_least("vapo.anchors.max_tokens_in_flight", anchors.max_tokens_in_flight, 0)
    _at_least("vapo.anchors.self_test_rows", anchors.self_test_rows, 0)
    _at_least("vapo.attention.max_spans", config.attention.max_spans, 1)
    _at_most("vapo.attention.max_spans", config.attention.max_spans, MAX_SPANS)
    _at_least("vapo.advantage.num_bins", advantage.num_bins, 1)
    _at_most("vapo.advantage.num_bins", advantage.num_bins, MAX_BINS)
    _at_least("vapo.rollout.prepare_workers", config.rollout.prepare_workers, 1)
    _at_least("vapo.logging.num_rollout_samples", config.logging.num_rollout_samples, 0)
    _at_least("vapo.logging.rollout_freq", config.logging.rollout_freq, 1)
    _at_least("vapo.logging.report_freq", config.logging.report_freq, 0)
    _at_least("vapo.seed", config.seed, 0)
    if not 0 < config.replay_poll_s <= MAX_POLL_S:
        raise ValueError(
            f"vapo.replay_poll_s={config.replay_poll_s}: set seconds above 0, up to {MAX_POLL_S}"
        )
    if not 10 <= config.rollout.timeout_s < math.inf:
        raise ValueError(
            f"vapo.rollout.timeout_s={config.rollout.timeout_s}: set 10 or more seconds; the first "
            "tokens and micro-batches of a run take some"
        )
    if not 0 <= config.rollout.max_failed_fraction <= 1:
        raise ValueError(
            f"vapo.rollout.max_failed_fraction={config.rollout.max_failed_fraction} is outside "
            "[0, 1]: set the fraction of a step's responses that may fail"
        )
    debug = config.debug
    if debug.train_only and (debug.rollout_only or debug.save_rollouts):
        other = "rollout_only=True" if debug.rollout_only else "save_rollouts"
        raise ValueError(
            f"vapo.debug.train_only={debug.train_only!r} generates nothing, and "
            f"vapo.debug.{other} needs rollouts; set one of them"
        )
    if debug.train_only and config.keep_best:
        raise ValueError(
            f"vapo.debug.train_only={debug.train_only!r} cannot validate, and vapo.keep_best="
            f"{config.keep_best} needs a validation; leave one of them out"
        )
    for key, value in flat(dataclasses.asdict(config), "vapo.").items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key}={value!r}: set a finite number")
    for name in ("accuracy_weight", "format_weight", "perception_weight"):
        _at_least(f"vapo.reward.{name}", getattr(reward, name), 0.0)
    if not 0 <= advantage.attention_coef < 1:
        raise ValueError(
            f"vapo.advantage.attention_coef={advantage.attention_coef} is outside [0, 1): "
            "at 1 a token could lose all its credit; 0 turns it off, 0.3 is a start"
        )
    for name in ("yes_words", "no_words"):
        if not all(getattr(anchors, name)) or not getattr(anchors, name):
            raise ValueError(f"vapo.anchors.{name} holds no word; set words such as [Yes]")
    if not asks_one_claim(anchors.question):
        raise ValueError(
            f"vapo.anchors.question={anchors.question!r} must hold {{claim}} once and not end with "
            "white space: the tokenizer would make that space a token of its own"
        )
    needs_attention = reward.perception_source == "attention" or advantage.attention_coef > 0
    if needs_attention and not config.attention.enabled:
        raise ValueError(
            "vapo.attention.enabled=False, but vapo.advantage.attention_coef or "
            "vapo.reward.perception_source=attention need visual attention; "
            "set vapo.attention.enabled=true, or the coefficient to 0 and the source to claims"
        )
    for name in ("chance_corrected", "soft"):
        if reward.perception_source == "attention" and getattr(reward, name):
            raise ValueError(
                f"vapo.reward.{name}=True scores answers to claims, and "
                "vapo.reward.perception_source=attention pays visual attention instead; set "
                f"{name}=false, or the source to claims"
            )

    without_perception = reward.perception_source == "none" or (
        reward.perception_source == "claims" and not anchors.num_anchors
    )
    if advantage.normalization == "decoupled" and without_perception:
        raise ValueError(
            "vapo.advantage.normalization=decoupled normalises perception by itself, and "
            f"vapo.reward.perception_source={reward.perception_source} with "
            f"vapo.anchors.num_anchors={anchors.num_anchors} measures none; set total, which is "
            "GRPO, or a source and anchors"
        )


def asks_one_claim(question: str) -> bool:
    """Whether a question template holds ``{claim}`` once, and no white space at its end."""
    return question.count("{claim}") == 1 and question == question.rstrip()


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key}={value!r} is not known; use one of {', '.join(allowed)}")


def _at_least(key: str, value: float, low: float) -> None:
    if value < low:
        raise ValueError(f"{key}={value!r} is too small; set {low} or more")


def _at_most(key: str, value: float, high: float) -> None:
    if value > high:
        raise ValueError(f"{key}={value!r} is too large; set {high} or less")
