"""Metrics: accumulators that are fed batch by batch, and the pure functions of two maps that they average."""
