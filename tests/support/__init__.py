"""What integration and e2e tests share: an operator as a process, jobs through the API, a kubelet played by hand."""
