"""Transcriptions: for those who wait, and in the background."""
