"""Folders that several processes read, and that the last of them deletes.

A lock that is shared says that a folder is being read; it ends with the process, however that ends.
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
    """Says that a folder is read, as long as it lives.

    Take it inside of `alone(folder)`, so that nobody deletes the folder meanwhile.
    """

    def __init__(self, folder: Path):
        """Lock; where the file system knows no locks or is read-only, nothing is said."""
        self.folder = folder
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o644)
            self._end = weakref.finalize(self, os.close, self._file)
            fcntl.flock(self._file, fcntl.LOCK_SH)

    def end(self) -> bool:
        """Read no more, and delete the folder unless somebody else reads it.

        Returns:
            Whether it was deleted. Where there are no locks nobody can know, and it stays.
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
