"""Which limits fit a model or a notebook: found by running it in sandboxes."""
