"""Evaluation of models: a task loops over images, and feeds metrics; `grouping-zoo eval` and training run the same."""
