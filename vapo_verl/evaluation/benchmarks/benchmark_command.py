"""`benchmark`: accuracy of a model on benchmark files, graded by rules.

`python -m vapo_verl.evaluation benchmark MODEL DATA... --out OUT` writes, for each file of DATA, a
folder `OUT/NAME` (`OUT/NAME.blank` with `--image blank`; its files are described in
:mod:`vapo_verl.evaluation.benchmarks.answering` and `benchmark_results`), and over all of them
`OUT/scores.csv` and `OUT/page.html`. A run that was killed resumes with the same command.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vapo_verl.claims.options import temperature
from vapo_verl.claims.requests.reply import without_key
from vapo_verl.cli_options import (
    OptionError,
    add_options,
    check_bounds,
    cli,
    given_options,
    options_from,
)
from vapo_verl.config import JudgeConfig
from vapo_verl.evaluation.benchmarks import IMAGES
from vapo_verl.evaluation.benchmarks.benchmark_page import benchmark_body, write_page
from vapo_verl.evaluation.benchmarks.benchmark_results import (
    SCORES_FILE,
    grade_answers,
    read_results,
    scores_csv,
    summarise,
    write_results,
)
from vapo_verl.evaluation.probing.journal import PAGE_FILE, SETTINGS_FILE
from vapo_verl.evaluation.probing.probe_options import (
    EngineOptions,
    data_fingerprint,
    model_fingerprint,
    shown,
    stated_values,
)
from vapo_verl.files import atomic_write_text
from vapo_verl.run_folder.layout import CONFIG_FILE, config_file

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from vapo_verl.claims.options import EndpointOptions
    from vapo_verl.evaluation.benchmarks import BenchmarkRow, Rule
    from vapo_verl.evaluation.benchmarks.answering import Task

PROTOCOLS = {"paper": (1, 0.0), "avg8": (8, 1.0)}
"""Name -> samples per row, and their temperature."""
PAPER_SUFFIX = (
    "You first think through the reasoning process as an internal monologue, enclosed within "
    "<think> </think> tags. Then, provide your final answer enclosed within \\boxed{}."
)
"""The text that VAPO's evaluation puts after the question, without a separator."""
SUFFIXES = ("paper", "vapo", "trained", "none")
_ROWS_FOR_SUFFIX = 64
_NAME_LIMIT = 120
_WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkOptions:
    """A model, benchmark files, and a protocol."""

    engine: EngineOptions = field(metadata=cli(group="engine"))
    data: tuple[Path, ...] = field(metadata=cli(positional="DATA"))
    """TSV files of VLMEvalKit, or parquet files of the row format."""
    out: Path = field(metadata=cli(metavar="DIR"))
    """Folder for the results."""
    protocol: str = field(default="paper", metadata=cli(choices=tuple(PROTOCOLS)))
    """paper: one greedy answer; avg8: 8 samples at temperature 1."""
    image: str = field(default="own", metadata=cli(choices=IMAGES))
    """Ask with each row's own images, their mean colour, blurred ones, or those of another row."""
    rules: str | None = field(default=None, metadata=cli(metavar="NAME"))
    """Rule for all files (by the name of a file, else by its columns)."""
    suffix: str | None = field(default=None, metadata=cli(choices=SUFFIXES))
    """Text after the question of TSV rows (paper; avg8: trained for a run folder, else vapo)."""
    limit: int | None = field(default=None, metadata=cli(low=1))
    """Only the first rows of each file, for a trial."""
    step: int | None = field(default=None, metadata=cli(low=1))
    """Checkpoint of a run folder (the newest complete one)."""
    max_tokens: int = field(default=2048, metadata=cli(low=1))
    """Most tokens of one answer."""
    batch: int = field(default=64, metadata=cli(low=1))
    """Rows asked at once; a killed run computes at most this many again."""
    seed: int | None = field(default=None, metadata=cli(low=0))
    """Seed of samples and of swapped images (vapo.seed of a run folder, else 0)."""
    model_name: str | None = None
    """Model of the endpoint (the only one that it lists)."""
    max_concurrency: int = field(default=16, metadata=cli(low=1))
    """Requests to an endpoint or a judge at once."""
    judge: str | None = field(default=None, metadata=cli(metavar="URL"))
    """OpenAI-compatible endpoint that decides about answers no rule can read."""
    judge_model: str | None = None
    """The judge's model (the only one that its endpoint lists)."""
    judge_temperature: float | None = field(
        default=JudgeConfig().temperature, metadata=cli(parse=temperature, low=0)
    )
    """A number, or `server` for the endpoint's own; some models accept no other."""
    judge_max_tokens: int = field(default=JudgeConfig().max_tokens, metadata=cli(low=1))
    """Most tokens of a judge's reply, thinking included."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.judge is not None and not is_endpoint(self.judge):
            raise OptionError(f"--judge {self.judge}: give an address as http://HOST:PORT/v1")


def is_endpoint(model: str) -> bool:
    """Whether MODEL is a URL and not a folder."""
    return model.startswith(("http://", "https://"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The fields of :class:`BenchmarkOptions`."""
    parser.description = (
        "Accuracy on benchmark files. MODEL: a Hugging Face folder, the hub name of a model that "
        "is in the local cache, a run folder (its newest complete checkpoint is exported), or the "
        "address of an OpenAI-compatible endpoint (OPENAI_API_KEY holds its key). Nothing is "
        "downloaded."
    )
    add_options(parser, BenchmarkOptions)


def run(arguments: argparse.Namespace) -> int:
    """The command.

    Raises:
        OptionError, BenchmarkError, RunError: an error that the user has to fix.
    """
    options = options_from(BenchmarkOptions, arguments)

    benchmarks = _read_all(options)
    model = _model(options, given_options(arguments))
    tasks = [_task(path, rows, rule, model, options) for path, rows, rule in benchmarks]
    _refuse_control_tokens(tasks, model)
    _refuse_other_model(options.out, model)
    if options.judge is not None and options.judge_model is None:
        judge_model = served_model(options.judge, "--judge-model")
        options = replace(options, judge_model=judge_model)
    _ask(tasks, model, options)
    for task in tasks:
        _grade(task, options)
    results = read_results(options.out)
    atomic_write_text(options.out / SCORES_FILE, scores_csv(results))
    page = options.out / PAGE_FILE
    write_page(
        page, f"Benchmarks of {model.name}", _note(tasks, model, options), benchmark_body(results)
    )
    print(page)
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """What MODEL names."""

    name: str
    fingerprint: str
    engine: EngineOptions | None
    """None for an endpoint; min_pixels and max_pixels default to those of the run folder."""
    trained_suffix: str | None
    """Text after the questions it was trained on; None if unknown."""
    seed: int


def _read_all(options: BenchmarkOptions) -> list[tuple[Path, list[BenchmarkRow], Rule]]:
    names = [path.stem for path in options.data]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise OptionError(
            f"DATA: {', '.join(twice)} is given more than once; results go to OUT/NAME: rename one"
        )
    found = []
    for path in options.data:
        rows, rule = read_with_rule(path, options.rules)
        found.append((path, rows[: options.limit], rule))
    return found


def read_with_rule(path: Path, given: str | None = None) -> tuple[list[BenchmarkRow], Rule]:
    """A benchmark's rows, and its rule: the given one, or the one for the file's name.

    A TSV without a known name gets `mcq` if every row has options, `yes-no` if every answer is yes
    or no, else `free-form`, as all rows of our own format do. The rule is tried on all rows.

    Raises:
        DataError: a bad file, with rows, columns and fixes; or no such rule.
    """
    from vapo_verl.evaluation.benchmarks.benchmark_file import read_benchmark
    from vapo_verl.evaluation.benchmarks.rules import check_rows, find_rule, rule_name_of

    if name := given or rule_name_of(path.stem):
        rule = find_rule(name)
        rows = read_benchmark(path, skip_without_image=rule.skip_without_image)
    else:
        rows = read_benchmark(path)
        rule = find_rule(_rule_by_columns(rows))
    check_rows(rule, rows, path)
    return rows, rule


def _rule_by_columns(rows: Sequence[BenchmarkRow]) -> str:
    if any(row.messages for row in rows):
        return "free-form"
    if all(row.choices for row in rows):
        return "mcq"
    if all(row.answer.strip().casefold() in ("yes", "no") for row in rows):
        return "yes-no"
    return "free-form"


def _model(options: BenchmarkOptions, given: Collection[str]) -> _Model:
    """What MODEL names; a run's settings replace options that are not `given`."""
    model, seed = options.engine.model, options.seed
    if is_endpoint(model):
        _refuse(options.step, "--step", "it chooses a checkpoint of a run folder")
        for name, what in (
            ("min_pixels", "resizes images"),
            ("max_pixels", "resizes images"),
            ("chat_template", "renders its chat template"),
            ("chat_template_kwargs", "renders its chat template"),
        ):
            flag = f"--{name.replace('_', '-')}"
            _refuse(getattr(options.engine, name), flag, f"an endpoint {what} by itself")
        name = options.model_name or served_model(model, "--model-name")
        return _Model(
            name=name,
            fingerprint=f"{model} {name}",
            engine=None,
            trained_suffix=None,
            seed=seed or 0,
        )
    _refuse(options.model_name, "--model-name", "it names a model of an endpoint")
    folder = Path(model)
    if (folder / CONFIG_FILE).is_file():
        return _run_folder_model(folder, options, given)
    _refuse(options.step, "--step", "it chooses a checkpoint of a run folder")
    if folder.is_dir():
        name, fingerprint = folder.resolve().name, model_fingerprint(model)
    else:
        folder = _cached(model)
        name, fingerprint = model, f"{model} {model_fingerprint(str(folder))}"
    if not (folder / "config.json").is_file():
        raise OptionError(
            f"MODEL {model}: neither a Hugging Face folder (config.json), nor a run folder "
            f"({CONFIG_FILE}); give another folder"
        )
    return _Model(
        name=name,
        fingerprint=fingerprint,
        engine=replace(options.engine, model=str(folder), seed=seed or 0),
        trained_suffix=None,
        seed=seed or 0,
    )


def _cached(name: str) -> Path:
    """The folder of a hub name, with weights, in the local cache; OptionError without one."""
    from vapo_verl.data.control_tokens import model_folder

    folder = model_folder(name)
    if folder is None or not any(path for kind in _WEIGHTS for path in folder.glob(kind)):
        raise OptionError(
            f"MODEL {name}: no folder, no address, and no hub name whose weights are in the local "
            f"cache; nothing is downloaded: give a folder that is here, or run `hf download {name}`"
        )
    return folder


def served_model(url: str, option: str) -> str:
    """The only model that an endpoint lists.

    Raises:
        OptionError: the endpoint does not answer, or lists no or several models; the message says
            to name one with `option`.
    """
    import httpx

    key = os.environ.get("OPENAI_API_KEY", "")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    address = f"{url.rstrip('/')}/models"
    try:
        reply = httpx.get(address, headers=headers, timeout=30.0).raise_for_status()
        names = [str(model["id"]) for model in reply.json()["data"]]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {without_key(str(error), key)}".partition("\n")[0]
        raise OptionError(
            f"{address} lists no models ({reason}); correct the address, or name the model with "
            f"{option}"
        ) from error
    if len(names) != 1:
        listed = f"{len(names)} models: {without_key(', '.join(names[:5]), key)}"
        raise OptionError(f"{address} lists {listed}; name one with {option}")
    return names[0]


def _refuse(value: object, option: str, reason: str) -> None:
    if value is not None:
        raise OptionError(f"{option} {shown(value)}: {reason}; leave it out for this MODEL")


def _run_folder_model(run_dir: Path, options: BenchmarkOptions, given: Collection[str]) -> _Model:
    """The exported checkpoint, with the settings it was trained with where none are given."""
    from omegaconf import DictConfig, OmegaConf

    from vapo_verl.export.model_folder import write_model_folder
    from vapo_verl.export.source import ExportError, find_checkpoint

    try:
        checkpoint = find_checkpoint(run_dir, options.step)
        step, folder = checkpoint.step, run_dir / f"model_step_{checkpoint.step}"
        if folder.is_dir() and folder.stat().st_mtime < checkpoint.folder.stat().st_mtime:
            raise OptionError(
                f"MODEL {run_dir}: {folder} is older than the checkpoint of step {step}, so it may "
                "be from another checkpoint; remove it, and it is made again"
            )
        if not folder.is_dir():
            print(f"exporting step {step} to {folder}", flush=True)
            try:
                write_model_folder(run_dir, step, folder)
            except (ExportError, OSError):
                if not folder.is_dir():  # else another evaluation of this run was faster
                    raise
    except ExportError as error:
        raise OptionError(f"MODEL {run_dir}: {error}") from error
    config = OmegaConf.load(config_file(run_dir, step))
    assert isinstance(config, DictConfig)
    engine = options.engine
    seed = options.seed
    if seed is None:
        seed = int(OmegaConf.select(config, "vapo.seed") or 0)
    of_run = {
        name: value
        for name, value in stated_values(config).items()
        if hasattr(engine, name) and name not in given
    }
    return _Model(
        name=f"{run_dir.resolve().name}, step {step}",
        fingerprint=model_fingerprint(str(folder)),
        engine=replace(engine, model=str(folder), seed=seed, **of_run),
        trained_suffix=trained_suffix(config),
        seed=seed,
    )


def trained_suffix(config: DictConfig) -> str | None:
    """The text after the questions that a run trains on; None if its first file is gone.

    It is the paper's suffix, or else the lines that end the prompts of all first rows; empty if
    they end differently.
    """
    from vapo_verl.data.errors import FileError
    from vapo_verl.data.parquet_stream import iter_rows, open_parquet

    files = config.data.train_files
    path = Path(files if isinstance(files, str) else files[0])
    try:
        with open_parquet(path, key="data.train_files") as parquet:
            rows: Any = iter_rows(parquet, ("prompt",), path=path, key="data.train_files")
            texts = [str(row["prompt"][-1]["content"]) for _, row in islice(rows, _ROWS_FOR_SUFFIX)]
    except FileError:
        return None
    if all(text.endswith(PAPER_SUFFIX) for text in texts):
        return PAPER_SUFFIX
    common: list[str] = []
    for line, *others in zip(*(reversed(text.split("\n")[1:]) for text in texts), strict=False):
        if len(set(texts)) == 1 or any(other != line for other in others):
            break
        common.insert(0, f"\n{line}")
    return "".join(common)


def suffix_text(chosen: str | None, protocol: str, trained: str | None) -> str:
    """The text after the questions of a TSV.

    Args:
        chosen: one of `SUFFIXES`; None takes that of the protocol.
        trained: as :func:`trained_suffix`.

    Raises:
        OptionError: the suffix of the training rows is chosen but not known.
    """
    from vapo_verl.data.parquet_stream import PROMPT_SUFFIX

    texts = {"paper": PAPER_SUFFIX, "vapo": f"\n{PROMPT_SUFFIX}", "none": "", "trained": trained}
    if chosen is None:
        chosen = "paper" if protocol == "paper" else "vapo" if trained is None else "trained"
    text = texts[chosen]
    if text is None:
        raise OptionError(
            f"--suffix {chosen}: MODEL is no run folder, or its training file is gone; choose "
            "paper, vapo or none"
        )
    return text


def _task(
    path: Path, rows: list[BenchmarkRow], rule: Rule, model: _Model, options: BenchmarkOptions
) -> Task:
    from vapo_verl.evaluation.benchmarks.answering import Sampling, Task

    num_samples, temperature = PROTOCOLS[options.protocol]
    sampling = Sampling(
        num_samples=num_samples,
        temperature=temperature,
        max_tokens=options.max_tokens,
        seed=model.seed,
    )
    suffix = suffix_text(options.suffix, options.protocol, model.trained_suffix)
    ending = "" if options.image == "own" else f".{options.image}"
    return Task(
        name=path.stem,
        rows=rows,
        rule=rule,
        folder=options.out / f"{path.stem[:_NAME_LIMIT]}{ending}",
        sampling=sampling,
        image=options.image,
        suffix=suffix,
        settings={
            "MODEL": model.fingerprint,
            "DATA": data_fingerprint(path),
            "--rules": rule.name,
            "--protocol": options.protocol,
            "--image": options.image,
            "--suffix": suffix,
            "--limit": options.limit,
            "--max-tokens": options.max_tokens,
            "--seed": model.seed,
            **_engine_settings(model, options),
        },
    )


def _refuse_other_model(out: Path, model: _Model) -> None:
    """Raises OptionError if `out` holds results of another model: its page shows only one."""
    for path in sorted(out.glob(f"*/{SETTINGS_FILE}")):
        other = json.loads(path.read_text(encoding="utf-8")).get("MODEL")
        if other != model.fingerprint:
            raise OptionError(
                f"--out {out}: {path.parent.name} is of {other!r}, and MODEL is "
                f"{model.fingerprint!r}; give each model a folder of its own"
            )


def _refuse_control_tokens(tasks: Sequence[Task], model: _Model) -> None:
    """Raises RowError for questions that hold a control token of the model's tokenizer."""
    from vapo_verl.data.control_tokens import ControlTokens, tokenizer_tokens
    from vapo_verl.data.errors import ProblemLog, RowProblem

    if model.engine is None or model.engine.control_tokens != "refuse":
        return
    tokens = tokenizer_tokens(Path(model.engine.model))
    controls = ControlTokens() if tokens is None else ControlTokens(tokens)
    log = ProblemLog()
    for task in tasks:
        for row in task.rows:
            text = "".join(turn["content"] for turn in task.question(row)[0])
            if word := controls.find(text):
                found = f"{word!r} in the question of index {row.index!r}"
                fix = "take it out, or give --control-tokens text, which encodes it as plain text"
                column = "prompt" if row.messages else "question"
                problem = RowProblem(row=row.number, column=column, found=found, fix=fix)
                log.add(problem, task.name)
    log.raise_if_any()


def _engine_settings(model: _Model, options: BenchmarkOptions) -> dict[str, Any]:
    if model.engine is None:
        return {}
    return {
        "--batch": options.batch,
        "--dtype": model.engine.dtype,
        "--max-model-len": model.engine.max_model_len,
        "--min-pixels": model.engine.min_pixels,
        "--max-pixels": model.engine.max_pixels,
        "--control-tokens": model.engine.control_tokens,
        "--plain-think-tokens": model.engine.plain_think_tokens,
        "--chat-template": model.engine.chat_template_digest,
        "chat template": dict(model.engine.chat_template_kwargs or {}),
    }


def _ask(tasks: Sequence[Task], model: _Model, options: BenchmarkOptions) -> None:
    from vapo_verl.evaluation.benchmarks.answering import ask_endpoint, ask_engine

    print(
        f"{model.name}: protocol {options.protocol}, images {options.image}, seed {model.seed}, "
        f"suffix {tasks[0].suffix!r}"
    )
    if model.trained_suffix not in (None, tasks[0].suffix):
        print(f"note: its training questions end with {model.trained_suffix!r}")
    if model.engine is not None:
        ask_engine(tasks, model.engine, options.batch)
        return
    sampled_at = tasks[0].sampling.temperature
    endpoint = _endpoint(options.engine.model, model.name, options.max_tokens, sampled_at)
    ask_endpoint(tasks, endpoint, options.max_concurrency)


def _endpoint(url: str, model: str, max_tokens: int, temperature: float | None) -> EndpointOptions:
    from vapo_verl.claims.options import NO_KEY, EndpointOptions

    key = os.environ.get("OPENAI_API_KEY") or NO_KEY
    return EndpointOptions(
        model=model,
        base_url=url,
        api_key=key,
        max_tokens=max_tokens,
        temperature=temperature,
        timeout_s=600.0,
    )


def _grade(task: Task, options: BenchmarkOptions) -> None:
    from vapo_verl.evaluation.benchmarks import judging
    from vapo_verl.evaluation.benchmarks.answering import read_answers

    graded = grade_answers(task, read_answers(task))
    judged: dict[str, Any] | None = None
    if options.judge is not None:
        cases = judging.judge_cases(task, graded)
        endpoint = _endpoint(
            options.judge,
            str(options.judge_model),
            options.judge_max_tokens,
            options.judge_temperature,
        )
        found = judging.judge(list(cases.values()), endpoint, options.out, options.max_concurrency)
        graded = judging.apply_decisions(graded, cases, found.decisions)
        failed = sum(case not in found.decisions for case in cases.values())
        judged = {
            "model": options.judge_model,
            "temperature": options.judge_temperature,
            "max_tokens": options.judge_max_tokens,
            "prompt_version": judging.PROMPT_VERSION,
            "asked": len(cases),
            "failed": failed,
        }
        if failed:
            print(f"WARNING: {task.name}: the judge decided nothing about {failed} answers")
            print(f"  ({_reasons(found.failures)}); they stay unparsed, and count as incorrect")
    path = next(path for path in options.data if path.stem == task.name)
    summary = summarise(task, graded)
    summary |= {
        "model": task.settings["MODEL"],
        "protocol": options.protocol,
        "data": str(path.resolve()),
        "judge": judged,
    }
    write_results(task, graded, summary)
    accuracy = summary["accuracy"]
    print(
        f"{task.name}: {100 * accuracy['mean']:.1f} % of {summary['num_rows']} rows, unparsed "
        f"{100 * summary['unparsed']['share']:.1f} %, truncated "
        f"{100 * summary['truncated']['share']:.1f} %, judged "
        f"{100 * summary['judged']['share']:.1f} %"
    )


def _reasons(failures: Mapping[str, int]) -> str:
    return "; ".join(f"{count} x {reason}" for reason, count in failures.items())


def _note(tasks: Sequence[Task], model: _Model, options: BenchmarkOptions) -> str:
    samples, temperature = PROTOCOLS[options.protocol]
    drawn = "one greedy answer" if samples == 1 else f"{samples} samples at {temperature:g}"
    return (
        f"{model.fingerprint}. Protocol {options.protocol}: {drawn} of up to {options.max_tokens} "
        f"tokens per row, seed {model.seed}, suffix {tasks[0].suffix!r}."
    )
