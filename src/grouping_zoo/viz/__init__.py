"""Figures of groups and labels, plots of metrics. It only draws, and imports nothing that computes."""
