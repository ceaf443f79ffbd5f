"""Wrappers that make any training method's forgetting harder to undo, one file each."""
