"""Folders that several processes read, and that the last of them deletes.

Each reader holds a shared lock on the folder. The lock ends with its process, even a killed one.
"""

import contextlib
import fcntl
import os
import shutil
import weakref
from pathlib import Path

from helpers.io.cache import file_lock

NAME = ".readers.lock"


class ReadLock:
    """A shared lock that keeps a folder from being deleted while it is read.

    Acquire it inside of `file_lock(folder)`, so that nobody deletes the folder meanwhile.
    """

    def __init__(self, folder: Path):
        """Acquire the lock; do nothing where the file system has no locks or is read-only."""
        self.folder = folder
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o644)
            self._end = weakref.finalize(self, os.close, self._file)
            fcntl.flock(self._file, fcntl.LOCK_SH)

    def release(self) -> bool:
        """Release the lock, and delete the folder unless another process reads it.

        Returns:
            Whether the folder was deleted. It is not where the file system has no locks.
        """
        if self._file is None:
            return False
        with file_lock(self.folder):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(self.folder, ignore_errors=True)
            except OSError:
                return False
            finally:
                self._end()
        return True
