"""Training by gradient descent: examples, the loop, and LoRA."""
