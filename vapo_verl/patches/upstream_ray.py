"""Changes of ray 2.60."""


def keep_sigterm_handler() -> None:
    """Leave SIGTERM to this process: `ray.init` sets no handler of its own.

    Ray's raises SystemExit, which is lost where it interrupts a finalizer, and tears the cluster
    down at once.
    """
    import ray

    ray._private.utils.set_sigterm_handler = lambda _handler: None
