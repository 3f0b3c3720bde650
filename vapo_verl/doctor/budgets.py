"""Check a recipe's lengths, batches, pixels and answer tokens against model and data."""

from collections.abc import Callable, Iterator
from functools import partial

from omegaconf import DictConfig, OmegaConf

from vapo_verl import preflight
from vapo_verl.config import VapoConfig, vapo_config
from vapo_verl.doctor.findings import Finding, error, examine, ok, warning
from vapo_verl.doctor.model_size import model_folder, vision_tokens
from vapo_verl.launch import export_attention

CHECK, THINK = "recipe", "think tags"
REPORTED_APART = ("attention kernel", "context")
"""Preflight checks that have their own finding: in accelerator.py, and below."""


def check_recipe(config: DictConfig) -> Iterator[Finding]:
    """Run all preflight checks; a run itself stops at the first problem."""
    settings = vapo_config(OmegaConf.to_container(config.vapo, resolve=True))  # type: ignore[arg-type]
    steps: tuple[tuple[str, str, Callable[[DictConfig], object]], ...] = (
        *((CHECK, name, run) for name, run in preflight.CHECKS if name not in REPORTED_APART),
        (CHECK, "visual attention", export_attention),
        ("context", "room for prompt, response and claim", _context),
        ("model", config.actor_rollout_ref.model.path, preflight.check_model),
    )
    for check, what, look in steps:
        yield from examine(check, _passed, check, what, partial(look, config))
    yield from examine("data", _data, config)
    yield from examine("pixels", check_pixels, config)
    yield from examine(THINK, check_think_tags, config, settings)
    if settings.probes_claims:
        yield from examine("answers", check_answers, config, settings)


def _passed(check: str, what: str, look: Callable[[], object]) -> Iterator[Finding]:
    notes = look()
    yield ok(check, "; ".join(notes) if isinstance(notes, list) and notes else what)


def _context(config: DictConfig) -> None:
    preflight.check_context(config)
    rollout = config.actor_rollout_ref.rollout
    if (
        not rollout.enable_chunked_prefill
        and rollout.max_num_batched_tokens < rollout.max_model_len
    ):
        raise ValueError(
            f"actor_rollout_ref.rollout.max_num_batched_tokens={rollout.max_num_batched_tokens} is "
            f"below max_model_len={rollout.max_model_len} without chunked prefill; "
            f"set {rollout.max_model_len} or more, or enable_chunked_prefill=true"
        )


def _data(config: DictConfig) -> Iterator[Finding]:
    for report in preflight.check_data(config):
        what, _, fix = report.removeprefix("warning: ").rpartition("; ")
        yield warning("data", what, fix) if report.startswith("warning: ") else ok("data", report)


def check_pixels(config: DictConfig) -> Iterator[Finding]:
    """Compare the tokens of the largest and smallest allowed images with the prompt length."""
    data, cut = config.data, vision_tokens(model_folder(config))
    room, side = data.max_prompt_length, round(cut.pixels_per_token**0.5)
    most = (data.max_pixels or cut.max_pixels or 0) // cut.pixels_per_token
    least = (data.min_pixels or 0) // cut.pixels_per_token
    limit = f"data.max_prompt_length={room}"
    most_found = (
        f"data.max_pixels={data.max_pixels or cut.max_pixels} is up to {most} image tokens "
        f"of {side} x {side} pixels"
    )
    fits = f"data.max_pixels={(room - room // 8) * cut.pixels_per_token}"
    if data.min_pixels and data.max_pixels and data.min_pixels > data.max_pixels:
        found = f"data.min_pixels={data.min_pixels} is above data.max_pixels={data.max_pixels}"
        yield error("pixels", found, "lower data.min_pixels")
    elif least >= room:
        found = f"data.min_pixels={data.min_pixels} is {least} image tokens, {limit} has no room"
        fix = f"data.min_pixels={room // 2 * cut.pixels_per_token} or a larger max_prompt_length"
        yield error("pixels", found, fix)
    elif most < room:
        yield ok("pixels", f"{most_found}; {limit}")
    elif data.filter_overlong_prompts:
        found = f"{most_found}, over {limit}: rows with such images are left out"
        yield warning("pixels", found, f"{fits} shrinks them instead")
    else:
        found = f"{most_found}, over {limit}, and data.filter_overlong_prompts=false"
        yield error("pixels", found, f"{fits}, or data.filter_overlong_prompts=true")


def check_answers(config: DictConfig, settings: VapoConfig) -> Iterator[Finding]:
    """The tokens that answer the anchor question, with the run's own tokenizer."""
    folder = model_folder(config)
    if folder is None:
        yield _without_tokenizer("answers", config)
        return
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    question = preflight.anchor_question(tokenizer, settings.anchors)
    spelled = [repr(tokenizer.decode([token])) for token in question.answer_ids]
    ids = f"yes {spelled[0]} = {question.yes_id}, no {spelled[1]} = {question.no_id}"
    yield ok("answers", ids)


def check_think_tags(config: DictConfig, settings: VapoConfig) -> Iterator[Finding]:
    """Whether the policy can write `<think>` and `</think>`, which the format reward looks for."""
    folder = model_folder(config)
    if folder is None:
        yield _without_tokenizer(THINK, config)
        return
    from vapo_verl.data.control_tokens import RESPONSE_TAGS, load_processor, tags_as_text

    own_template = config.actor_rollout_ref.model.get("custom_chat_template")
    processor = load_processor(folder, own_template)
    tokenizer = processor.tokenizer
    setting, key = settings.data.plain_think_tokens, "vapo.data.plain_think_tokens"
    added = tags_as_text(tokenizer, "true", processor)
    ids = ", ".join(f"{tag} = {tokenizer.convert_tokens_to_ids(tag)}" for tag in RESPONSE_TAGS)
    spelled = tags_as_text(tokenizer, setting, processor)
    untrained = tags_as_text(tokenizer, "auto", processor)
    encoded = tokenizer.convert_tokens_to_ids(list(added))
    skipped = bool(added) and not tokenizer.decode(encoded, skip_special_tokens=True)
    if not added:
        yield ok(THINK, "they are ordinary text for this tokenizer")
    elif spelled and not untrained:
        found = f"{key}={setting}: the chat template writes the tokens {ids}, prompts spell them"
        yield warning(THINK, found, f"{key}=auto")
    elif spelled:
        found = f"the tokens {ids} are in no chat template, as untrained ones"
        yield ok(THINK, f"{found}: prompts and responses spell them ({key}={setting})")
    elif untrained:
        found = (
            f"{key}={setting}: the tokens {ids} are in no chat template; if they were not trained, "
            "as in Qwen3-VL-Instruct, the format reward stays 0"
        )
        yield warning(THINK, found, f"{key}=auto, or leave it where the model was tuned with them")
    elif skipped:
        found = f"the tokens {ids} are special: the text of a response is decoded without them"
        yield error(THINK, f"{found}, so that the format reward stays 0", f"{key}=true")
    else:
        yield ok(THINK, f"the chat template writes the tokens {ids}")


def _without_tokenizer(check: str, config: DictConfig) -> Finding:
    found = f"the tokenizer of {config.actor_rollout_ref.model.path} is not on this machine"
    return warning(check, found, f"hf download {config.actor_rollout_ref.model.path}")
