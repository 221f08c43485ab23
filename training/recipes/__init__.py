"""One file tells one paper: its config, its step with the loss, and what is particular to it."""
