"""Methods that act at inference time: they return a `HookIntervention` and remove nothing."""
