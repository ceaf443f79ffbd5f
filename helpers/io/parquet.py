"""Reading and writing of tables as Parquet files, with a checksum of each page."""

from pathlib import Path

import pandas as pd

from helpers.io.files import atomic_path, readable


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as Parquet with a checksum of each page, atomically."""
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False, write_page_checksum=True)


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a Parquet table.

    Raises:
        UserError: The file is missing or damaged.
    """
    # Any exception: on damaged bytes the parser was seen to raise dozens of kinds.
    with readable(path, (Exception,)) as path:
        return pd.read_parquet(path, page_checksum_verification=True)
