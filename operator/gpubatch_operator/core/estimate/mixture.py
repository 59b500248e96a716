"""Which view of the past to trust, learned from how well each has foretold.

Each finished job is a trial of all views: its duration had some likelihood under each. The weights are the shares of
credit that the views got so far (expectation-maximization, one step for each job), older trials fading; apart for each
context, shrunk towards all contexts of its family together while there is little of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from gpubatch_operator.core.estimate.grid import Array

FADE = 0.995  # what a trial still counts after the next one
BORROW = 5.0  # trials: so much does the family weigh in one context
PAST_VIEWS = 5  # views of past jobs; those that follow are of the job itself
TOLD = 10.0  # so much more is a view of the job itself trusted at the beginning
START = 1.0  # trials: so much does the even share weigh at the beginning

Context = tuple[Hashable, Hashable]
"""Family and member."""


class Mixture:
    """Weights of the views; all contexts of a family have the same number of them."""

    def __init__(self) -> None:
        self._families: dict[Hashable, Array] = {}
        self._credit: dict[Context, Array] = {}

    def weights(self, context: Context, views: int) -> Array:
        """The weights, summing to 1."""
        family = self._families.get(context[0])
        base = np.ones(views)
        base[PAST_VIEWS:] = TOLD
        base /= base.sum()
        if family is not None:
            base = (family + START * base) / (family.sum() + START)
        own = self._credit.get(context)
        if own is None:
            return base
        return np.asarray((own + BORROW * base) / (own.sum() + BORROW))

    def learn(self, context: Context, likelihoods: Sequence[float]) -> None:
        """A trial: the likelihood of what happened under each view."""
        credit = self.weights(context, len(likelihoods)) * np.maximum(likelihoods, 1e-9)
        credit /= credit.sum()
        self._families[context[0]] = self._families.get(context[0], 0.0) * FADE + credit
        self._credit[context] = self._credit.get(context, 0.0) * FADE + credit
