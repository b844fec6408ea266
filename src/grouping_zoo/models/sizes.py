"""Checks of the sizes that networks are made with."""


def check_sizes(**sizes: int) -> None:
    """Checks that sizes, by the names of their arguments, are at least 1.

    Raises:
        ValueError: for the first one that is not.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
