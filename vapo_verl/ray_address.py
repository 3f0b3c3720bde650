"""Which Ray cluster a run joins, by the rules of ``ray.init``. Imports no Ray."""

import os
from collections.abc import Mapping
from pathlib import Path


def address_file(environment: Mapping[str, str] | None = None) -> Path:
    """The file in which `ray start` stores its address; None: by this process's environment."""
    environment = os.environ if environment is None else environment
    temporary = environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or "/tmp"
    return Path(temporary) / "ray" / "ray_current_cluster"


def joined_cluster(
    address: str | None = None, environment: Mapping[str, str] | None = None
) -> str | None:
    """Address of the cluster that ``ray.init(address=address)`` joins; None if it starts one.

    An explicit address comes first, then ``RAY_ADDRESS``, then a cluster that `ray start` left on
    this machine. ``local`` in the first two requests a new cluster.
    """
    environment = os.environ if environment is None else environment
    if address in (None, "", "auto"):
        address = environment.get("RAY_ADDRESS") or address
    if address == "local":
        return None
    if address in (None, "", "auto"):
        left_here = address_file(environment)
        return left_here.read_text().strip() if left_here.is_file() else address or None
    return address
