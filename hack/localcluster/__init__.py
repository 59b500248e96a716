"""A throw-away Kubernetes cluster for development, tests and demonstrations: behind `hack/cluster` and `hack/images`.

With a Docker daemon it is kind. Without one, the same Kubernetes is compiled from its Go modules and run as ordinary
processes: a control plane on the machine, and nodes that are each a kubelet, a containerd and a kube-proxy in
namespaces of their own. Only the standard library is used: it runs before anything of the project is installed.
"""
