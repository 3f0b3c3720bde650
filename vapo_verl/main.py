"""``python -m vapo_verl.main +recipe=NAME [key=value ...]``: train.

Light until a run starts: ``--help`` and ``--cfg job`` import neither torch nor veRL.
"""

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vapo_verl.hydra_config import recipe_names, register
from vapo_verl.settings import check_keys, check_recipe_package, unreadable_override

BAD_INPUT = 2
EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, as in a shell."""
WITH_VALUE = (
    *("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--package", "-p"),
    *("--experimental-rerun", "--cfg", "-c", "--info", "-i"),
)
"""Hydra's options that take the next argument as their value."""
LAST_LINES = 12
"""Traceback lines on the console, for an unexpected error."""

register()


@hydra.main(config_path="conf", config_name="vapo", version_base=None)
def main(config: DictConfig) -> None:
    choices = HydraConfig.get().runtime.choices
    if "recipe" not in choices:
        fail(f"no recipe was given; add +recipe=NAME, one of {', '.join(recipe_names())}")
    try:
        check_composition(config, choices["recipe"])
    except ValueError as error:
        fail(str(error))
    config.vapo.recipe = choices["recipe"]
    from vapo_verl.console import LOG_FILE
    from vapo_verl.launch import ProcessDied, RunInterrupted, after_a_stop, launch
    from vapo_verl.preflight import InputError
    from vapo_verl.run_folder import RunFolderError
    from vapo_verl.trainer.stopping import EXIT_STOPPED, RunStopped

    try:
        launch(config)
    except InputError as error:
        fail(str(error))
    except RunFolderError as error:
        fail(error.message, exit_code=1)
    except ProcessDied as error:
        log = Path(config.trainer.default_local_dir) / LOG_FILE
        fail(f"{error}\nThe whole log: {log}", exit_code=1)
    except RunInterrupted as error:
        fail(str(error), exit_code=EXIT_INTERRUPTED)
    except KeyboardInterrupt:
        fail("interrupted (Ctrl-C) before the run began", exit_code=EXIT_INTERRUPTED)
    except RunStopped as stopped:
        print(after_a_stop(config, stopped.step))
        raise SystemExit(EXIT_STOPPED) from None
    except Exception as error:
        if config.vapo.logging.console == "full":
            traceback.print_exc()
            raise Ended(1) from None
        fail(last_words(error, config.trainer.default_local_dir), exit_code=1)


def check_composition(config: DictConfig, recipe: str) -> None:
    """Refuse a recipe with settings that nothing reads.

    Raises:
        ValueError: with the file or the key, and the fix.
    """
    hydra_config = HydraConfig.get()
    sources = hydra_config.runtime.config_sources
    folders = [Path(source.path) for source in sources if source.schema == "file"]
    check_recipe_package(config, recipe, folders)
    given: Any = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
    added = [str(item) for item in given if str(item).startswith("+")]
    check_keys(config, [item.lstrip("+").partition("=")[0] for item in added])


def last_words(error: Exception, run_dir: str) -> str:
    """The end of an error's traceback; the full one is appended to console.log, if possible."""
    from vapo_verl.console import LOG_FILE

    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
    log = Path(run_dir) / LOG_FILE
    with suppress(OSError), log.open("a", encoding="utf-8") as stream:
        stream.write("\n".join(lines) + "\n")
    end = "\n".join(lines[-LAST_LINES:])
    return f"the run failed; the whole log is {log}, which ends with:\n{end}"


def fail(message: str, exit_code: int = BAD_INPUT) -> NoReturn:
    """Exit with a message to the user instead of a stack trace."""
    print(f"vapo_verl: {message}", file=sys.stderr)
    raise Ended(exit_code)


class Ended(SystemExit):
    """The exit code of a run; Hydra's own errors are a plain SystemExit of 1."""


def run() -> None:
    """Run :func:`main` on the command line; exit code 2 is an error that the user has to fix."""
    arguments = sys.argv[1:]
    several_runs = bool({"-m", "--multirun"} & set(arguments))
    for argument in overrides(arguments):
        problem = unreadable_override(argument, several_runs=several_runs)
        if problem is not None:
            fail(problem)
    sys.argv[1:] = options_last(arguments)
    try:
        main()
    except SystemExit as ended:
        if ended.code == 1 and not isinstance(ended, Ended):
            raise SystemExit(BAD_INPUT) from None
        raise


def overrides(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments that are settings, and not Hydra's options."""
    return (argument for argument, is_option in _parts(arguments) if not is_option)


def options_last(arguments: Sequence[str]) -> list[str]:
    """The arguments with options last: Hydra refuses settings on both sides of an option."""
    options = [argument for argument, is_option in _parts(arguments) if is_option]
    return [*overrides(arguments), *options]


def _parts(arguments: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Each argument, and whether it is one of Hydra's options or the value of one."""
    before = ""
    for argument in arguments:
        yield argument, argument.startswith("-") or before in WITH_VALUE
        before = argument


if __name__ == "__main__":
    run()
