"""Methods that act at inference time: their result is an `HookIntervention`, and nothing is removed."""
