"""Finds the record of an image without holding all records in memory."""

from collections.abc import Iterator
from pathlib import Path

from vapo_verl.claims.shards.record import ClaimRecord
from vapo_verl.claims.shards.store import read_shard, shard_paths
from vapo_verl.data.errors import FileError


class RecordIndex:
    """Image key -> where its line is: some hundred bytes an image."""

    def __init__(self, folder: Path):
        """Read all shards once.

        Raises:
            FileError: no records there, or a damaged line.
        """
        self._places: dict[str, tuple[Path, int]] = {}
        for path in shard_paths(folder):
            for offset, record in read_shard(path):
                self._places[record.image_key] = (path, offset)
        if not self._places:
            raise FileError(f"CLAIMS_DIR: {folder} holds no records; give the --out of generate")

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __getitem__(self, key: str) -> ClaimRecord:
        path, offset = self._places[key]
        with path.open("rb") as file:
            file.seek(offset)
            return ClaimRecord.from_json(file.readline())
