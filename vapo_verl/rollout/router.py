"""Which rollout server answers for a prompt: all its responses and probes go to one server.

A server preprocesses and encodes an image once and keeps the prompt's keys and values, so each
further request about the prompt costs it little, and any other server all of it again.
"""

from typing import Any

from verl.workers.rollout.router import GlobalRequestLoadBalancer

MAX_SESSIONS = 100_000
"""Prompts that are remembered. More than a training step or a validation has in flight: a forgotten
one would go on at another server."""


class PromptRouter(GlobalRequestLoadBalancer):
    """veRL's sticky sessions, where new sessions take the servers in turn.

    A session is a prompt of a step (:class:`vapo_verl.rollout.prober.OneServerClient`). veRL
    sends a new session to the server with the fewest requests in flight. With several requests to a
    session that depends on their order: responses of the first prompts make a server look busy, and
    the others get the remaining prompts. In turn, any N sessions that follow each other are spread
    evenly, whatever the order of their requests.

    A session whose server has left the pool (``remove_servers``) takes the next turn. Sessions of
    a server that comes back under its old id go to the new actor.
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
