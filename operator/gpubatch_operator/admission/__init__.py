"""The validating admission webhook: what only the queue, or an administrator, can say against a job."""
