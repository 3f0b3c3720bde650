"""A `vllm serve` of our own, ended whatever happens."""
