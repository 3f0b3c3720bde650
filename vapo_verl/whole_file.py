"""Files that appear whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER_SYNC_UNSUPPORTED = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}
)
"""What network file systems (CIFS, some FUSE and NFS servers) answer to fsync of a folder."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path to write; it is moved to `path` on success, and gone after any error.

    It is in the same folder, because a rename is atomic within a file system only.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk, where its file system can do that.

    A file system that has no fsync for folders orders their entries itself; the files in them are
    synced on their own, and their errors are never passed over.

    Raises:
        OSError: the sync failed, for instance for a full disk or a lost server.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in FOLDER_SYNC_UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)
