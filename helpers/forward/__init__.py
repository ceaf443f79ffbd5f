"""Forward passes: prompts and tokens, batches, caches, scores and activations."""
