"""Figures of a run for trackers, and its final report; an error here never ends the run."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vapo_verl.console import say
from vapo_verl.report.page import write_report
from vapo_verl.report.rollout_panels import anchor_panels, attention_panels
from vapo_verl.report.run_summary import summarise_run
from vapo_verl.report.training_panels import training_panels
from vapo_verl.run_folder import MissingPackage
from vapo_verl.run_folder.layout import REPORT_FILE

NUM_SAMPLES = 120
"""Responses that the report of a run shows in full."""
KEY_PANELS = (
    "Reward",
    "Visual attention by progress",
    "Anchor accuracy by position",
    "Calibration of p(yes)",
)
"""Titles of the figures that go to the trackers."""


class KeyPictures:
    """A tracking backend that sends the report's key figures to the others, as images.

    They are drawn from the run folder: rewards of all steps, attention and anchors of the rollouts
    sampled since the last pictures. A figure for which nothing was sampled is left out.
    """

    def __init__(self, run_dir: Path, backends: Mapping[str, Any], *, freq: int, last_step: int):
        """`freq`: steps between pictures, which are also made at `last_step`; 0 makes none."""
        self._run_dir, self._freq, self._last_step = run_dir, freq, last_step
        senders = {"wandb": send_to_wandb, "tensorboard": send_to_tensorboard}
        self._sends = [(send, backends[name]) for name, send in senders.items() if name in backends]
        self._warned = False

    def log(self, data: Mapping[str, Any], step: int) -> None:
        """Called by veRL once a step, after the line in `metrics.jsonl`."""
        if not (self._sends and self._is_due(step)):
            return
        try:
            for name, image in self.pictures(step):
                for send, backend in self._sends:
                    send(backend, name, image, step)
        except ModuleNotFoundError as error:
            self._sends = []
            package = (error.name or "").partition(".")[0]
            say(
                f"WARNING: no pictures for the trackers: {package} is not installed; "
                f"`pip install {package}`"
            )
        except Exception as error:  # of a tracker's client, or a full disk
            if not self._warned:
                say(f"WARNING: no pictures for the trackers: {error!r}")
            self._warned = True

    def _is_due(self, step: int) -> bool:
        return self._freq > 0 and step > 0 and (step % self._freq == 0 or step == self._last_step)

    def pictures(self, step: int) -> Iterator[tuple[str, Image.Image]]:
        """Name and image of each key figure at `step`."""
        from vapo_verl.plots.matplotlib_figure import picture  # matplotlib: only where it is needed

        since = range((step - 1) // self._freq * self._freq + 1, step + 1)
        run = summarise_run(self._run_dir, name="", num_samples=0, seed=0, rollouts_of=since)
        for panel in (*training_panels([run]), *attention_panels([run]), *anchor_panels([run])):
            if panel.title in KEY_PANELS and panel.series:
                yield f"report/{panel.title}", picture(panel)


def write_final_report(run_dir: Path) -> None:
    """Write `report.html` at the end of a run; failures are logged, never raised."""
    try:
        run = summarise_run(run_dir, name=run_dir.name, num_samples=NUM_SAMPLES, seed=0)
        write_report(run_dir / REPORT_FILE, [run])
    except MissingPackage as error:
        command = f"python -m vapo_verl.report {run_dir}"
        say(f"WARNING: no {REPORT_FILE}: {error}, then `{command}`")
    except Exception as error:  # the run is done, and its files are on the disk
        say(f"WARNING: no {REPORT_FILE}: {error!r}")


def send_to_wandb(wandb: Any, name: str, image: Image.Image, step: int) -> None:
    """Log an image with the `wandb` module of the run."""
    wandb.log({name: wandb.Image(image)}, step=step)


def send_to_tensorboard(backend: Any, name: str, image: Image.Image, step: int) -> None:
    """Log an image with veRL's TensorBoard backend."""
    backend.writer.add_image(name, np.asarray(image), step, dataformats="HWC")
