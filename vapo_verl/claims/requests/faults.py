"""What can go wrong with a request, by what is to be done about it."""


class TransientFault(Exception):
    """Worth another try: a timeout, a lost connection, 429, 5xx, an answer that is none."""

    def __init__(self, reason: str, retry_after_s: float | None = None):
        super().__init__(reason)
        self.reason = reason
        """Short, without figures that differ by request: reasons are counted."""
        self.retry_after_s = retry_after_s
        """The wait that the server asks for."""


class ImageFailed(Exception):
    """This image gets no record in this run; the others go on."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        """Short and countable; `str()` has the details."""


class FatalFault(Exception):
    """Would befall every image: the run stops. The message says what to mend."""
