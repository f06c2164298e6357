"""Writing files so that at every moment the old one or the new one is there, whole."""
import errno
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List, Optional, Union

from mmengine.fileio import LocalBackend, register_backend

from mmskd.errors import DiskFullError

UNFINISHED = '.unfinished'  # what a file's name ends in while it is written
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def write_whole(data: bytes, path: Union[str, Path]) -> None:
    """Write a file that is there whole, or not at all, whenever the process is killed.

    The bytes go to a file beside it, are flushed to the disk, and take over the name in one step.

    Args:
        data (bytes): The content.
        path (str | Path): A local file. Its folder is made if there is none; a file that is there
            is replaced.

    Raises:
        DiskFullError: If there is no room, or none within the quota; names the file, and what is
            needed and free.
        OSError: If it cannot be written for another reason.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        with open(unfinished, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        _remove_if_there(unfinished)
        if error.errno in NO_ROOM:
            raise DiskFullError(no_room_for(path, len(data))) from error
        raise
    _flush_folder(path.parent)


def no_room_for(path: Union[str, Path], needed: Optional[int] = None) -> str:
    """A line on a file for which there is no room.

    Args:
        path (str | Path): The file, or its folder.
        needed (int, optional): Its size in bytes, where it is known. Default: None.
    """
    path = Path(path)
    free = shutil.disk_usage(path if path.is_dir() else path.parent).free
    wanted = '' if needed is None else f'{in_megabytes(needed)} are needed and '
    return (f'no room for {path}: {wanted}{in_megabytes(free)} are free. Make room (or raise the '
            'quota), then go on with --resume')


def in_megabytes(size: int) -> str:
    """A number of bytes for people."""
    return f'{size / 2**20:,.1f} MB'


def remove_unfinished(folder: Union[str, Path]) -> None:
    """Delete what killed processes left half written in a folder."""
    for path in Path(folder).glob(f'*{UNFINISHED}'):
        _remove_if_there(path)


def _remove_if_there(path: Path) -> None:
    try:
        path.unlink()
    except FileNotFoundError:
        pass


def _flush_folder(folder: Path) -> None:
    """Make the new name outlive a power cut, where the file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


@register_backend('mmskd_local', force=True)
class SafeLocalBackend(LocalBackend):
    """MMEngine's access to local files, with files that are replaced whole.

    MMEngine takes it where ``backend_args=dict(backend='mmskd_local')``.
    """

    def __init__(self) -> None:
        self._postponed: Optional[List[str]] = None

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        """Write bytes; see :func:`write_whole`."""
        write_whole(obj, filepath)

    def remove(self, filepath: Union[str, Path]) -> None:
        """Delete a file; within :meth:`removing_later`, not yet."""
        if self._postponed is None:
            super().remove(filepath)
        else:
            self._postponed.append(str(filepath))

    @contextmanager
    def removing_later(self) -> Iterator[List[str]]:
        """Postpone what is removed in the block.

        Yields:
            list[str]: The files, for the caller to delete when what replaces them is there.
        """
        self._postponed = []
        try:
            yield self._postponed
        finally:
            self._postponed = None
