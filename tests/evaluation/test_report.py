from grouping_zoo.evaluation.report import as_csv, defined, differences, table


def test_tables_show_the_metrics_of_each_column() -> None:
    one = {"a": {"miou": 50.0, "iou/cat": 40.0}, "b": {"learning_rate": 0.03}}
    other = {"a": {"miou": 52.5}}
    lines = table({"one": one, "other": other}).splitlines()
    assert [line.split() for line in lines] == [
        ["one", "other"],
        ["a"],
        ["mean", "IoU,", "%", "50.0", "52.5"],
        ["IoU", "cat,", "%", "40.0", "-"],
        ["b"],
        ["learning", "rate", "0.03", "-"],
    ]
    assert differences(other, one) == {"a": {"miou": 2.5}}
    crowded = table({"one": {"a": {"miou": 1.0, **{f"iou/{number}": 1.0 for number in range(31)}}}})
    assert "IoU 3" not in crowded


def test_rows_for_other_programs_hold_every_defined_value() -> None:
    column = {"a": {"miou": 0.1 + 0.2, "iou/cat": float("nan")}}
    assert defined(column) == {"a": {"miou": 0.1 + 0.2}}
    lines = as_csv({"net": {"checkpoint": defined(column)}}).splitlines()
    assert lines == ["model,column,task,metric,value", "net,checkpoint,a,miou,0.30000000000000004"]
