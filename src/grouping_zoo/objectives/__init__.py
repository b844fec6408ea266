"""Training objectives: each is a module, `objective(batch) -> {"loss": ..., other scalars}`, with its settings."""
