"""transformers configurations and classes: thin, each holds the one network and returns transformers' outputs."""
