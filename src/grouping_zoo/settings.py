"""The check that all settings of recipes share, so that their errors read alike."""


def require(config: object, setting: str, condition: bool, expected: str) -> None:
    """Check a setting of a dataclass.

    Args:
        config: the dataclass.
        setting: its name in a recipe, such as "run.steps", which ends in the name of the field.
        condition: whether the field has a possible value.
        expected: the possible values in words.

    Raises:
        ValueError: unless the condition holds.
    """
    if not condition:
        got = getattr(config, setting.rpartition(".")[2])
        raise ValueError(f"{setting}: expected {expected}, got {got}; change {setting}")
