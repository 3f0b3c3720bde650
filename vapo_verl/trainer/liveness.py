"""A rollout that waits for a dead process ends instead of waiting for ever.

Agent loops put their results into the replay buffer, which the trainer polls; nothing in veRL tells
it that the process which should have written them is gone.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray

INTERVAL_S = 5.0
PATIENCE_S = 60.0
"""Longer than Ray takes to know that a node is gone."""


class Liveness:
    """Asks actors, now and then and without waiting for them, whether they are alive.

    Args:
        actors: handles; one that is busy answers later.
        interval_s: at least so long between two questions to an actor.
    """

    def __init__(self, actors: Sequence[Any], interval_s: float = INTERVAL_S) -> None:
        self._idle = list(actors)
        self._asked: dict[Any, Any] = {}  # question -> actor
        self._interval_s = interval_s
        self._next = 0.0

    def check(self) -> None:
        """Returns at once.

        Raises:
            ray.exceptions.RayActorError: an actor is dead, alone or with its node.
        """
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._interval_s
        self._ask(timeout_s=0)

    def look_for_death(self, patience_s: float = PATIENCE_S) -> None:
        """Wait until every actor has answered: what failed may have done so for want of another.

        Args:
            patience_s: after which an actor that does not answer is taken to be busy.

        Raises:
            ray.exceptions.RayActorError: an actor is dead, alone or with its node.
        """
        end = time.monotonic() + patience_s
        while (self._ask(timeout_s=1) or self._asked) and time.monotonic() < end:
            time.sleep(0.5)

    def _ask(self, timeout_s: float) -> bool:
        """Ask who has answered before; whether some actor cannot be reached."""
        self._asked.update({actor.__ray_ready__.remote(): actor for actor in self._idle})
        answered, _ = ray.wait([*self._asked], num_returns=len(self._asked), timeout=timeout_s)
        self._idle = [self._asked.pop(question) for question in answered]
        reached = 0
        for answer in answered:
            with suppress(ray.exceptions.ActorUnavailableError):  # Ray does not know yet: ask again
                ray.get(answer)
                reached += 1
        return reached < len(answered)
