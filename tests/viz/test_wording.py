"""Numbers in words."""

from grouping_zoo.viz.wording import counted, percent


def test_percent_never_hides_what_is_there() -> None:
    assert [percent(fraction) for fraction in (0, 0.0001, 0.006, 0.314, 1)] == ["0 %", "< 1 %", "1 %", "31 %", "100 %"]


def test_a_noun_follows_its_number() -> None:
    assert [counted(count, "group") for count in (0, 1, 2)] == ["0 groups", "1 group", "2 groups"]
