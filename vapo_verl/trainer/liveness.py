"""Detect dead actors, so that a rollout does not wait for their results for ever.

Agent loops put their results into the replay buffer, which the trainer polls. veRL does not report
the death of a process that should have written them.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray

INTERVAL_S = 5.0
TIMEOUT_S = 60.0
"""Longer than Ray takes to detect a lost node."""


class Liveness:
    """Pings actors at intervals, without blocking.

    Args:
        actors: handles; a busy actor answers later.
        interval_s: minimum time between two pings of an actor.
    """

    def __init__(self, actors: Sequence[Any], interval_s: float = INTERVAL_S) -> None:
        self._idle = list(actors)
        self._pending: dict[Any, Any] = {}  # ping -> actor
        self._interval_s = interval_s
        self._next = 0.0

    def check(self) -> None:
        """Ping the idle actors and return at once.

        Raises:
            ray.exceptions.RayActorError: an actor is dead, alone or with its node.
        """
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._interval_s
        self._ping(timeout_s=0)

    def look_for_death(self, timeout_s: float = TIMEOUT_S) -> None:
        """Ping all actors and wait; a failure may be a consequence of another actor's death.

        Args:
            timeout_s: an actor that has not answered by then counts as busy.

        Raises:
            ray.exceptions.RayActorError: an actor is dead, alone or with its node.
        """
        end = time.monotonic() + timeout_s
        while (self._ping(timeout_s=1) or self._pending) and time.monotonic() < end:
            time.sleep(0.5)

    def _ping(self, timeout_s: float) -> bool:
        """Ping the actors that answered their last ping; true if one cannot be reached."""
        self._pending.update({actor.__ray_ready__.remote(): actor for actor in self._idle})
        answered, _ = ray.wait([*self._pending], num_returns=len(self._pending), timeout=timeout_s)
        self._idle = [self._pending.pop(ping) for ping in answered]
        reached = 0
        for answer in answered:
            with suppress(ray.exceptions.ActorUnavailableError):  # not settled: ping again
                ray.get(answer)
                reached += 1
        return reached < len(answered)
