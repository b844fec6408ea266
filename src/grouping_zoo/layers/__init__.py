"""The grouping operators, one idea a file, with no knowledge of the models that use them."""
