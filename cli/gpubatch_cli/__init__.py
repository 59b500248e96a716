"""`gpubatch`: what a user does on a laptop. Each command is a module with `add_to` and a function that runs it."""
