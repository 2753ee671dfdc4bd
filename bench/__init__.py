"""Benchmarks: linkd beside its peers, its idle links, the cost of each stage, the commands."""
