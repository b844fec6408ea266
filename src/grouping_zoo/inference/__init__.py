"""A photo in, groups and names out: shared by `grouping_zoo.segment` and the command."""
