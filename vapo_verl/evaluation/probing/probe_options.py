"""Options of all probing commands, and fingerprints of model and data."""

import argparse
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vapo_verl.cli_options import (
    OptionError,
    add_options,
    check_bounds,
    cli,
    given_options,
    options_from,
    settings_of,
    user_path,
)
from vapo_verl.config import (
    ANSWER_STYLES,
    CONTROL_TOKENS,
    JUDGE_STYLE,
    PLAIN_THINK_TOKENS,
    AnchorConfig,
    asks_one_claim,
)
from vapo_verl.run_folder import RunError
from vapo_verl.run_folder.checksums import WEIGHT_BLOCKS, cached_checksum

T = TypeVar("T")
FOLDER = "diagnostics"
"""Folder of all results, inside a run folder."""
OF_RUN = {
    "min_pixels": "data.min_pixels",
    "max_pixels": "data.max_pixels",
    "control_tokens": "vapo.data.control_tokens",
    "plain_think_tokens": "vapo.data.plain_think_tokens",
    "answer_style": "vapo.reward.answer_style",
    "max_tokens": "data.max_response_length",
    "chat_template": "actor_rollout_ref.model.custom_chat_template",
    "chat_template_kwargs": "data.apply_chat_template_kwargs",
    "question": "vapo.anchors.question",
    "yes_words": "vapo.anchors.yes_words",
    "no_words": "vapo.anchors.no_words",
}
"""Option -> the key of a run's config that gives its value if the option is not given. The last
three are those of commands that ask claims."""
_SHOWN_CHARACTERS = 200


def rows_or_all(text: str) -> int | None:
    """A number of rows; None, which is all of them, for 0."""
    return int(text) or None


def json_object(text: str) -> dict[str, Any]:
    """Arguments by name; ArgumentTypeError for anything but a JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no JSON object; give one, as '{{\"enable_thinking\": false}}'"
        )
    return value


def template_text(path: str) -> str:
    """The chat template in a file; ArgumentTypeError where it cannot be read."""
    try:
        return user_path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        found = f"{path!r} cannot be read ({error}); give a text file"
        raise argparse.ArgumentTypeError(found) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Where the model is, and how vLLM runs it."""

    model: str = field(metadata=cli(positional="MODEL"))
    """Folder or hub name of a Qwen2.5-VL or Qwen3-VL checkpoint."""
    dtype: str = "auto"
    """Type of the weights; auto: the checkpoint's."""
    max_model_len: int | None = field(default=None, metadata=cli(low=1))
    """Tokens of a context (the model's, at most 16384)."""
    block_size: int = field(default=16, metadata=cli(low=1, setting=False))
    """Block size of the KV cache, in tokens."""
    tensor_parallel_size: int = field(default=1, metadata=cli(low=1, setting=False))
    """GPUs."""
    gpu_memory_utilization: float = field(default=0.9, metadata=cli(setting=False))
    """Fraction of a GPU's memory that vLLM takes."""
    kv_cache_gib: float | None = field(default=None, metadata=cli(setting=False))
    """Memory of the KV cache (1 on CPU, the rest on GPU)."""
    max_num_seqs: int = field(default=128, metadata=cli(low=1, setting=False))
    """Requests at once."""
    min_pixels: int | None = field(default=None, metadata=cli(low=1))
    """Smaller images are enlarged (4 image tokens)."""
    max_pixels: int | None = field(default=None, metadata=cli(low=1))
    """Larger images are shrunk (16384 image tokens)."""
    control_tokens: str = field(default="refuse", metadata=cli(choices=CONTROL_TOKENS))
    """As vapo.data.control_tokens: refuse rows with such text, or encode it as plain text."""
    plain_think_tokens: str = field(default="auto", metadata=cli(choices=PLAIN_THINK_TOKENS))
    """As vapo.data.plain_think_tokens: encode think tags as plain text."""
    chat_template: str | None = field(
        default=None, metadata=cli(parse=template_text, metavar="FILE", setting=False)
    )
    """As actor_rollout_ref.model.custom_chat_template: a file in place of the model's template."""
    chat_template_kwargs: Mapping[str, Any] | None = field(
        default=None, metadata=cli(parse=json_object, metavar="JSON")
    )
    """As data.apply_chat_template_kwargs: arguments of the chat template."""
    attention_layers: str | tuple[int, ...] | None = field(default=None, metadata=cli(hidden=True))
    """As :func:`vapo_verl.attention.engine_args` takes them."""
    seed: int = field(default=0, metadata=cli(hidden=True))

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def chat_template_digest(self) -> str | None:
        """Of the given chat template, for settings that results depend on; None for that of the
        model's folder, as an export of the run has it."""
        given, own = self.chat_template, Path(self.model) / "chat_template.jinja"
        if given is None or (own.is_file() and own.read_text(encoding="utf-8") == given):
            return None
        return hashlib.sha256(given.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionOptions:
    """How a claim is asked, as in training."""

    question: str = AnchorConfig().question
    """As vapo.anchors.question."""
    yes_words: tuple[str, ...] = AnchorConfig().yes_words
    """As vapo.anchors.yes_words."""
    no_words: tuple[str, ...] = AnchorConfig().no_words
    """As vapo.anchors.no_words."""

    def __post_init__(self) -> None:
        if not asks_one_claim(self.question):
            raise OptionError(
                f"--question {self.question!r}: give a text that holds {{claim}} once and does not "
                "end with white space"
            )
        for name, words in (("--yes-words", self.yes_words), ("--no-words", self.no_words)):
            if not all(words):
                raise OptionError(f"{name}: an empty word; give words as Yes")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeOptions:
    """Rows, sampling, and where the results go."""

    engine: EngineOptions = field(metadata=cli(group="engine"))
    data: Path = field(metadata=cli(positional="DATA"))
    """Parquet file of the row format."""
    out: Path = field(metadata=cli(hidden=True, setting=False))
    num_rows: int | None = field(default=256, metadata=cli(parse=rows_or_all, low=0))
    """Rows drawn, 0 for all."""
    batch: int = field(default=64, metadata=cli(low=1, setting=False))
    """Rows probed at once: a killed run loses at most this many."""
    max_tokens: int = field(default=1024, metadata=cli(low=1))
    """Most tokens of a response."""
    temperature: float = field(default=0.0, metadata=cli(low=0))
    """Sampling temperature of responses; 0 is greedy."""
    answer_style: str = field(default="math", metadata=cli(choices=ANSWER_STYLES))
    """How answers are compared where a row does not say."""
    seed: int = field(default=0, metadata=cli(low=0))
    """Seed of all draws."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def settings(self) -> dict[str, Any]:
        """All that results depend on, except rounding; fixed for a folder of results."""
        return {
            **settings_of(self),
            "--chat-template": self.engine.chat_template_digest,
            "MODEL": model_fingerprint(self.engine.model),
            "DATA": data_fingerprint(self.data),
        }


def claim_settings(options: Any) -> dict[str, Any]:
    """Settings of a command that asks claims, the question under the name in older folders."""
    found = settings_of(options)
    found["question"] = found.pop("--question")
    return found


def add_command_arguments(
    parser: argparse.ArgumentParser, command_options: type, group: str, *, attention: bool
) -> None:
    """Add the arguments of every probing command, then those of one command.

    Args:
        command_options: dataclass of the command's own options.
        group: heading of these in the help.
        attention: whether the command exports visual attention, so that layers can be chosen.
    """
    add = parser.add_argument
    text = (
        "results go to RUN_DIR/diagnostics/COMMAND; the run's settings of images, prompts, claims, "
        "answers and lengths replace the defaults"
    )
    add("--run", type=user_path, metavar="RUN_DIR", help=text)
    add("--out", type=user_path, metavar="DIR", help="results go there")
    if attention:
        add("--attention-layers", help="`all`, or indices as 3,10 (one layer in 8)")
    add_options(parser, ProbeOptions)
    add_options(parser.add_argument_group(group), command_options)


def read_command_options(
    arguments: argparse.Namespace, command: str, command_options: type[T]
) -> tuple[ProbeOptions, T]:
    """The options of every probing command, and those of `command`.

    Raises:
        OptionError: a value out of its range.
        RunError: no folder for results, no such data file, or a config of the run that is damaged
            or does not fit.
    """
    if arguments.run is not None:
        arguments = argparse.Namespace(**vars(arguments) | _values_of_run(arguments))
    layers = _layers(getattr(arguments, "attention_layers", None))
    engine = options_from(EngineOptions, arguments, attention_layers=layers, seed=arguments.seed)
    if not arguments.data.is_file():
        raise RunError(f"DATA: {arguments.data} does not exist; give the path of a parquet file")
    options = options_from(ProbeOptions, arguments, engine=engine, out=_out(arguments, command))
    return options, options_from(command_options, arguments)


def _values_of_run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Values of options in OF_RUN that are not given, from the config in the folder of --run.

    Empty without a config, as in a folder that holds only results.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from vapo_verl.run_folder.layout import CONFIG_FILE

    file = arguments.run / CONFIG_FILE
    if not file.is_file():
        return {}
    try:
        stated = stated_values(OmegaConf.load(file))
    except (ValueError, TypeError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        fix = "restore it, or give --out in place of --run"
        raise RunError(f"--run: {file} is damaged ({reason}); {fix}") from error
    values = {
        name: value
        for name, value in stated.items()
        if hasattr(arguments, name) and name not in given_options(arguments)
    }
    if values.get("answer_style") == JUDGE_STYLE:
        raise RunError(
            f"--run: {file} has {OF_RUN['answer_style']}={JUDGE_STYLE}, and probes ask no judge; "
            f"give --answer-style, one of {', '.join(ANSWER_STYLES)}"
        )
    if values.keys() & {"min_pixels", "max_pixels"}:
        _check_pixels(vars(arguments) | values, file)
    changed = [
        f"{_flag(name)} {shown(value)}"
        for name, value in values.items()
        if value != getattr(arguments, name)
    ]
    if changed:
        print(f"{file}: {', '.join(changed)}")
    return values


def stated_values(config: Any) -> dict[str, Any]:
    """Option in OF_RUN -> its value in a run's config, for those that the config states."""
    from omegaconf import OmegaConf

    found = {name: _as_option(OmegaConf.select(config, key)) for name, key in OF_RUN.items()}
    return {name: value for name, value in found.items() if value is not None}


def _as_option(value: Any) -> Any:
    """A value of a config as options hold it; None for an empty mapping."""
    from omegaconf import DictConfig, ListConfig, OmegaConf

    if isinstance(value, DictConfig):
        return OmegaConf.to_container(value, resolve=True) or None
    if isinstance(value, ListConfig):
        return tuple(value)
    return str(value).lower() if isinstance(value, bool) else value


def shown(value: Any) -> str:
    """A value in a message, cut if it is long: a chat template has pages."""
    text = repr(value) if isinstance(value, str) and value.split() != [value] else str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _check_pixels(values: Mapping[str, Any], file: Path) -> None:
    least, most = values["min_pixels"], values["max_pixels"]
    if least is not None and most is not None and least > most:
        found = f"--min-pixels {least} is above --max-pixels {most}"
        raise RunError(f"{found}, one of them from {file}; give both")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _out(arguments: argparse.Namespace, command: str) -> Path:
    if arguments.out is not None:
        return arguments.out
    if arguments.run is None:
        raise RunError(f"give --run RUN_DIR, for RUN_DIR/{FOLDER}/{command}, or --out DIR")
    if not arguments.run.is_dir():
        raise RunError(f"--run {arguments.run}: no such folder; give a run's folder, or --out DIR")
    return arguments.run / FOLDER / command


def _layers(text: str | None) -> str | tuple[int, ...] | None:
    if text is None or text == "all":
        return text
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise RunError(f"--attention-layers {text}: give `all` or indices as 3,10") from error


def model_fingerprint(model: str) -> str:
    """A folder's name, and a digest of its config and of blocks throughout its weights.

    A name on the hub stays as it is. The folder may be moved.
    """
    folder = Path(model)
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("config.json"), *folder.glob("*.safetensors")]):
        digest.update(f"{path.name} {cached_checksum(path, WEIGHT_BLOCKS)}\n".encode())
    return f"{folder.resolve().name} {digest.hexdigest()[:16]}"


def data_fingerprint(path: Path) -> str:
    """A data file's name and a digest of its content; the file may be moved."""
    return f"{path.name} {cached_checksum(path)[:16]}"
