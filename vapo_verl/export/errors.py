"""What a person has to mend before a checkpoint can be exported."""


class ExportError(ValueError):
    """No such run or checkpoint, or a place that is taken; the message names path and fix."""
