"""A photo in, groups and names out: what `grouping_zoo.segment` and the command share."""
