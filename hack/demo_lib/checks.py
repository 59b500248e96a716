"""The list of what came true and what didn't: the demo's exit status."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Checks:
    """Each promise with its verdict."""

    verdicts: list[tuple[bool, str]] = field(default_factory=list)

    def that(self, promise: str, kept: bool, otherwise: object = "") -> None:
        """Note a promise; `otherwise` is what was found if it wasn't kept."""
        self.verdicts.append((kept, promise if kept else f"{promise}: {otherwise}".rstrip(": ")))

    @property
    def all_kept(self) -> bool:
        """Whether everything came true."""
        return all(kept for kept, _ in self.verdicts)

    def lines(self) -> list[str]:
        """For people."""
        return [f"  {'✓' if kept else '✗'} {text}" for kept, text in self.verdicts]
