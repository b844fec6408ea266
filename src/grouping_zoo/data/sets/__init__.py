"""The data sets, built in or on disk."""
