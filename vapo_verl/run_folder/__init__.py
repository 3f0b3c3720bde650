"""The run folder: its layout, and the writer and the reader of each of its files."""


class RunError(ValueError):
    """No run folder, or a place that cannot be written; the message names the path and the fix."""


class MissingPackage(RunError):
    """A page needs a package that is not installed; the message names it and the fix."""


class RunFolderError(RuntimeError):
    """A training run cannot write or read its folder; `message` says what, and the fix."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
