"""``python -m vapo_verl.main +recipe=NAME [key=value ...]``: train.

Light until a run starts: ``--help`` and ``--cfg job`` import neither torch nor veRL.
"""

import sys
import traceback
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from vapo_verl.hydra_config import recipe_names, register

EXIT_INTERRUPTED = 130
"""Of a command that Ctrl-C ended, as a shell has it."""
LAST_LINES = 12
"""Of an error that is not one of ours, on the console."""

register()


@hydra.main(config_path="conf", config_name="vapo", version_base=None)
def main(config: DictConfig) -> None:
    choices = HydraConfig.get().runtime.choices
    if "recipe" not in choices:
        fail(f"no recipe was given; add +recipe=NAME, one of {', '.join(recipe_names())}")
    config.vapo.recipe = choices["recipe"]
    from vapo_verl.console import LOG_FILE
    from vapo_verl.launch import ProcessDied, RunInterrupted, launch
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
        place = "before the first step" if stopped.step is None else f"at step {stopped.step}"
        print(f"Stopped on request {place}; the same command resumes.")
        raise SystemExit(EXIT_STOPPED) from None
    except Exception as error:
        if config.vapo.logging.console == "full":
            raise
        fail(last_words(error, config.trainer.default_local_dir), exit_code=1)


def last_words(error: Exception, run_dir: str) -> str:
    """The end of an error's traceback; all of it goes to the run's console.log."""
    from vapo_verl.console import LOG_FILE

    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
    log = Path(run_dir) / LOG_FILE
    with log.open("a", encoding="utf-8") as stream:
        stream.write("\n".join(lines) + "\n")
    end = "\n".join(lines[-LAST_LINES:])
    return f"the run failed; the whole log is {log}, and this its end:\n{end}"


def fail(message: str, exit_code: int = 2) -> NoReturn:
    """End with a message for a person instead of a stack trace."""
    print(f"vapo_verl: {message}", file=sys.stderr)
    raise SystemExit(exit_code)


if __name__ == "__main__":
    main()
