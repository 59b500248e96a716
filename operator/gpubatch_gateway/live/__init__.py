"""Live requests: which job answers them, how one is started, and the way there and back."""
