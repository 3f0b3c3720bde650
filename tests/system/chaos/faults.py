"""The faults that are tried: what happens to whom, in which phase, on how many ranks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

ROLES = {
    "driver": (r"vapo_verl\.main", ""),
    "task runner": (r"^ray::VapoTaskRunner", "VapoTaskRunner|trainer"),
    "rank": (r"^ray::\S*WorkerDict", "FSDP worker"),
    "server": (r"^ray::\S*HttpServer", "server|Server"),
    "engine": (r"^VLLM::|EngineCore", "engine|Engine"),
    "agent loop": (r"^ray::\S*AgentLoop", "agent loop worker"),
    "reward worker": (r"^ray::\S*RewardLoop", "reward worker"),
    "queue controller": (r"^ray::TransferQueueController", "TransferQueue|replay buffer"),
    "queue storage": (r"^ray::SimpleStorageUnit", "SimpleStorage|TransferQueue|replay buffer"),
    "raylet": (r"/raylet/raylet ", "raylet|node|Ray"),
    "gcs": (r"/gcs/gcs_server ", "GCS|gcs"),
}
"""Role -> pattern of its process title, and of the words that name it in a message."""
KILLED = tuple(ROLES)
STOPPED = (
    *("task runner", "rank", "server", "engine", "agent loop", "queue storage"),
    *("raylet", "gcs"),
)
"""Not the driver: it alone writes to the console, and the run goes on when it does."""
PHASES = (
    "start",
    "rollout",
    "log-prob",
    "update",
    "save",
    "transfer",
    "validation",
)
NOT_THERE = {("agent loop", "start"), ("reward worker", "start")}
"""Role and phase whose process comes later."""
COST_OF_RANKS = {1: 1, 2: 2}
"""Two ranks have two engines, and take twice as long to start: half as many faults meet them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault.

    Kinds: ``kill`` and ``stop`` (SIGKILL, SIGSTOP) of a role; ``disk``: no room in the run folder;
    ``shm``: none in /dev/shm when the command starts; ``cut``, ``flip``, ``lose``: a file of the
    newest checkpoint before a start; ``second``: another start of the same command.
    """

    kind: str
    role: str = ""
    phase: str = ""
    delay: float = 0.5
    """Where in the phase: a fraction of its usual length."""
    ranks: int = 1

    @property
    def ends_run(self) -> bool:
        """Whether the run is to end; it goes on beside a second start, and from a checkpoint."""
        return not (self.phase == "resume" or self.kind == "second")

    @property
    def name(self) -> str:
        parts = (self.kind, self.role, self.phase, f"{self.ranks}rank")
        return "-".join(part.replace(" ", "_") for part in parts if part)


def all_faults() -> list[Fault]:
    """Each fault on one rank and on two."""
    kills = [
        Fault(kind=kind, role=role, phase=phase)
        for kind, roles in (("kill", KILLED), ("stop", STOPPED))
        for role, phase in product(roles, PHASES)
        if (role, phase) not in NOT_THERE
    ]
    others = [
        *(Fault(kind="disk", phase=phase) for phase in ("rollout", "save", "validation")),
        Fault(kind="shm", phase="start"),
        *(Fault(kind=kind, phase="resume") for kind in ("cut", "flip", "lose")),
        Fault(kind="second", phase="rollout"),
    ]
    return [
        Fault(kind=f.kind, role=f.role, phase=f.phase, ranks=ranks)
        for f in (*kills, *others)
        for ranks in (1, 2)
    ]


def drawn(number: int, seed: int, only: str = "") -> list[Fault]:
    """`number` faults, the same for the same seed: kinds, roles and phases in turn, as possible.

    Args:
        only: words that the name of each fault contains, separated by commas: any of them.
    """
    draw = random.Random(seed)
    words = [word for word in only.split(",") if word]
    left = [f for f in all_faults() if not words or any(word in f.name for word in words)]
    draw.shuffle(left)
    chosen: list[Fault] = []
    while left and len(chosen) < number:
        fault = min(left, key=lambda f: _times_tried(f, chosen))
        left.remove(fault)
        chosen.append(fault)
    return [
        Fault(kind=f.kind, role=f.role, phase=f.phase, ranks=f.ranks, delay=draw.uniform(0.05, 0.9))
        for f in chosen
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Faults that one run folder meets, on the same number of ranks."""

    ends: list[Fault]
    """Each ends a start of the command."""
    last: list[Fault]
    """Those of the last start, which goes on to the last step: damage of the newest checkpoint
    before it, and a second start beside it."""

    @property
    def ranks(self) -> int:
        return (self.ends + self.last)[0].ranks


def chains(faults: Sequence[Fault], length: int) -> list[Chain]:
    """All faults, in chains of at most `length` that end a start, with one of each other kind."""
    result = []
    for ranks in (1, 2):
        mine = [fault for fault in faults if fault.ranks == ranks]
        ends = [fault for fault in mine if fault.ends_run]
        damages = [fault for fault in mine if fault.phase == "resume"]
        seconds = [fault for fault in mine if fault.kind == "second"]
        number = max(-(-len(ends) // length), len(damages), len(seconds))
        result += [
            Chain(ends=ends[n::number], last=[*damages[n::number], *seconds[n::number]])
            for n in range(number)
        ]
    return result


def _times_tried(fault: Fault, chosen: Sequence[Fault]) -> tuple[int, int, int]:
    """How often its parts were drawn: kind and role first, then phase, then ranks."""
    return (
        sum((f.kind, f.role) == (fault.kind, fault.role) for f in chosen),
        sum(f.phase == fault.phase for f in chosen),
        sum(f.ranks == fault.ranks for f in chosen) * COST_OF_RANKS[fault.ranks],
    )
