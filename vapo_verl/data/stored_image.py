"""An image that stays encoded until somebody looks at it."""

from __future__ import annotations

from typing import Any

from PIL import Image

from vapo_verl.data.errors import BadCell, RowError
from vapo_verl.data.images import image_source, is_remote, load_image, read_header


class StoredImage(Image.Image):
    """A PIL image with the pixels of :func:`load_image`, decoded when they are first used.

    Copies and pickles hold the encoded image or its path: an image travels from the data loader to
    the agent loops, and into the replay buffer, at the size of its file.

    Args:
        entry: as :func:`load_image` takes it, but for PIL images and arrays.
        where: the row it is from, for messages.

    Raises:
        BadCell: `entry` names no image.
        RowError: when it is used, and cannot be decoded.
    """

    def __init__(self, entry: object, where: str = "") -> None:
        super().__init__()
        self.source = image_source(entry)
        """The encoded image, or the path or address where it is."""
        self.where = where

    @property
    def mode(self) -> str:
        return "RGB"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the header where that is sure."""
        if self._im is None and not is_remote(self.source):
            try:
                header = read_header(self.source)
            except Exception as error:
                raise self._problem(error) from error
            if header.has_exact_size:
                return header.width, header.height
        self.load()
        return self._size

    def load(self) -> Any:
        if self._im is None:
            try:
                image = load_image(self.source, fetch=True)
            except BadCell as error:
                raise self._problem(error) from error
            self._im, self._mode, self._size = image.im, image.mode, image.size
        return super().load()

    def _problem(self, error: Exception) -> RowError:
        return RowError(f"{self.where}, {error}" if self.where else str(error))

    def __getstate__(self) -> tuple[bytes | str, str]:  # type: ignore[override]
        return self.source, self.where

    def __setstate__(self, state: tuple[bytes | str, str]) -> None:  # type: ignore[override]
        source, where = state
        StoredImage.__init__(self, source, where)


def stored_images(messages: list[dict[str, Any]]) -> list[StoredImage]:
    """Those of a prompt, in their order."""
    return [
        part["image"]
        for message in messages
        if isinstance(message["content"], list)
        for part in message["content"]
        if isinstance(part.get("image"), StoredImage)
    ]
