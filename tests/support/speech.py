"""What the samples of the image transcription say, and how much of it was understood."""

from __future__ import annotations

from demo_lib.tools import ROOT

SENTENCES = (ROOT / "images" / "transcription" / "sentences.txt").read_text().splitlines()
"""Of /samples/0.wav, 1.wav..."""


def recall(said: str, heard: str) -> float:
    """The share of a sentence's words that were understood."""
    words = said.lower().strip(".").split()
    return sum(word in heard.lower().strip(".").split() for word in words) / len(words)
