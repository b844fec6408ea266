"""The training engine: recipes, the accelerate loop, and training states that resume exactly."""
