"""Methods that act at inference time: their result is an `Intervention`, and nothing is removed."""
