"""Methods that unlearn by gradient descent: one file a loss, over one loop and one set of data."""
