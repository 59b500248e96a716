"""The benchmark of the queue: `hack/bench/queue`."""
