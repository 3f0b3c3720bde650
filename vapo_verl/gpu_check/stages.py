"""The stages in the order in which they tell most, and how a time budget is divided among them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One part of the check, in the module of its name."""

    name: str
    what: str
    needs: str
    """Packages beside torch."""
    core_s: int
    """Seconds on one H100 for its most telling cases, process start included."""
    cap_s: int
    """Seconds after which it is ended."""


STAGES = (
    Stage(
        name="kernels",
        what="Triton kernels against the reference: dtypes, GQA, head sizes, layouts, CUDA graphs",
        needs="triton, jaxtyping",
        core_s=35,
        cap_s=75,
    ),
    Stage(
        name="kernel_speed",
        what="time of the kernels as a share of a decode step's memory traffic",
        needs="triton, jaxtyping",
        core_s=25,
        cap_s=50,
    ),
    Stage(
        name="engine",
        what="visual attention of vLLM engines against transformers, per token",
        needs="vllm, transformers; flashinfer for its cases",
        core_s=100,
        cap_s=190,
    ),
    Stage(
        name="train",
        what="4 steps of the real job: FSDP, vLLM with sleep mode, weights by CUDA IPC, resume",
        needs="vllm, verl, ray; flash-attn for its cases",
        core_s=130,
        cap_s=220,
    ),
    Stage(
        name="engine_speed",
        what="decode steps with capture off, on the default layers and on all layers",
        needs="vllm, transformers",
        core_s=50,
        cap_s=85,
    ),
    Stage(
        name="probes",
        what="a rollout of 256 responses with 0, 8 and 20 anchors each",
        needs="vllm, transformers",
        core_s=50,
        cap_s=85,
    ),
)

DEFAULT_MINUTES = 12.0
SLOWER_ON_CPU = 6
"""Times as long a stage may take in a rehearsal."""


def select_stages(names: Sequence[str] | None) -> list[Stage]:
    """The stages of these names, also with commas between them, in their own order; all for None.

    Raises:
        ValueError: there is no stage of a name.
    """
    if names is None:
        return list(STAGES)
    known = [stage.name for stage in STAGES]
    wanted = [name for item in names for name in item.split(",") if name]
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"--stages {unknown[0]} is not known; use {' '.join(known)}")
    return [stage for stage in STAGES if stage.name in wanted]


def allot(stages: Sequence[Stage], budget_s: float) -> dict[str, int]:
    """Whole seconds for each stage: first the most telling cases of each, then the rest.

    In the order of the stages each gets its `core_s` while the budget lasts, and then what is left
    is added in the same order, up to `cap_s`. 0: there is no time for the stage.
    """
    left = int(budget_s)
    given = dict.fromkeys((stage.name for stage in stages), 0)
    for stage in stages:
        if stage.core_s <= left:
            given[stage.name] = stage.core_s
            left -= stage.core_s
    for stage in stages:
        if given[stage.name]:
            more = min(stage.cap_s - stage.core_s, left)
            given[stage.name] += more
            left -= more
    return given


def for_rehearsal(stages: Sequence[Stage]) -> list[Stage]:
    """The stages with limits for small sizes on a few CPU cores."""
    return [replace(stage, cap_s=SLOWER_ON_CPU * stage.cap_s) for stage in stages]
