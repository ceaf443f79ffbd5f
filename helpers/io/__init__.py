"""Files, caches and records: everything that the suite reads from disk or writes there."""
