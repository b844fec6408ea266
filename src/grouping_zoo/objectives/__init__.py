"""What is minimised: each objective is a module, `objective(batch) -> {"loss": ..., other scalars}`."""
