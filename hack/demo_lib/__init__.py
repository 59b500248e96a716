"""What `hack/demo` is made of."""
