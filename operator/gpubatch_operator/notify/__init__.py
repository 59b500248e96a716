"""Outgoing webhooks: what is said, how it is signed, where it may go, and when it is tried again."""
