"""What the benchmarks under hack/bench share."""
