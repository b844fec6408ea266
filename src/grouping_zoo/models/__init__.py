"""The networks, one file a family; importing a file registers its models with timm."""
