"""The imperative shell towards Kubernetes: watching, the store, the client, pods, actions."""
