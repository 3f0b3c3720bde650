"""Route all responses and probes of a prompt to one rollout server.

A server preprocesses and encodes an image once and keeps the prompt's keys and values. Further
requests about the prompt are cheap there; another server would compute everything again.
"""

from typing import Any

from verl.workers.rollout.router import GlobalRequestLoadBalancer

MAX_SESSIONS = 100_000
"""Prompts whose server is remembered; more than a training step or a validation has in flight. The
next request of a forgotten prompt may go to another server."""


class PromptRouter(GlobalRequestLoadBalancer):
    """veRL's sticky sessions, with new sessions assigned round-robin.

    A session is a prompt of a step (:class:`vapo_verl.rollout.prober.OneServerClient`). veRL
    sends a new session to the server with the fewest requests in flight. With several requests per
    session the result depends on their order: responses of the first prompts make a server look
    busy, and the others get the remaining prompts. Round-robin spreads any N consecutive sessions
    evenly, whatever the order of their requests.

    A session whose server has left the pool (``remove_servers``) gets the next server in turn.
    Sessions of a server that returns under its old id go to the new actor.
    """

    def __init__(self, servers: dict[str, Any], config: dict[str, Any] | None = None) -> None:
        """``config`` is the content of ``router.yaml``, which veRL passes on."""
        del config
        super().__init__(servers, max_cache_size=MAX_SESSIONS)
        self._turn = 0

    def acquire_server(self, request_id: str) -> tuple[str, Any]:
        """Id and actor of the session's server.

        Raises:
            RuntimeError: the pool is empty.
        """
        if self._servers and self._request_id_to_server.get(request_id) not in self._servers:
            in_order = list(self._servers)
            self._request_id_to_server[request_id] = in_order[self._turn % len(in_order)]
            self._turn += 1
        return super().acquire_server(request_id)
