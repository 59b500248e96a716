"""`gpubatch`, and `kubectl gpubatch`: what a user does from a laptop."""
