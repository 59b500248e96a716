"""The runner: the container beside the engine that turns a file of requests into files of results.

It streams the input, keeps the engine busy, journals each result and publishes the output atomically. It knows
nothing of Kubernetes but its own pod: a `RunSpec` comes in by environment, an `Outcome` leaves as the container's
termination message. `contract` is the only module that the operator may import.
"""
