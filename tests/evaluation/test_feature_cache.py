import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from grouping_zoo.evaluation.feature_cache import FeatureCache, feature_key, folder_fingerprint


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()


def key(network: nn.Module, **changes: Any) -> str:
    described = dict(data={"source": "scenes", "length": 6}, preprocessing={"size": [32, 32]}) | changes
    return feature_key(network, **described)


def test_what_was_put_is_got_and_nothing_else(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache")
    assert cache.get("a") is None
    given = {"features": torch.randn(6, 4, requires_grad=True).T, "labels": torch.arange(6)}
    cache.put("a", given)
    found = cache.get("a")
    assert found is not None
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], given[name]) for name in given)
    assert not found["features"].requires_grad
    assert cache.get("b") is None
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["features_a.safetensors"]


def test_any_change_is_another_key(network: nn.Sequential) -> None:
    keys = [key(network), key(network, data={"source": "scenes", "length": 7})]
    keys.append(key(network, preprocessing={"size": [32, 33]}))
    with torch.no_grad():
        network[0].weight[0, 0].nextafter_(torch.tensor(9.0))
    keys.append(key(network))
    network[1].running_mean[0] += 1e-3
    keys.append(key(network))
    network[1].eps = 1e-3  # no weight, but written out
    keys.append(key(network))
    keys.append(key(network.half()))
    assert len(set(keys)) == 7


def test_order_of_a_description_does_not_matter(network: nn.Sequential) -> None:
    assert key(network, data={"length": 6, "source": "scenes"}) == key(network)


def test_what_cannot_be_described_is_an_error(network: nn.Sequential) -> None:
    with pytest.raises(ValueError, match="expected values of JSON"):
        key(network, preprocessing={"resize": object()})


def test_interrupted_run_leaves_nothing_and_a_damaged_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    cache = FeatureCache(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("grouping_zoo.evaluation.feature_cache.save_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.put("a", {"features": torch.zeros(2)})
    assert not list(tmp_path.iterdir())
    cache.put("a", {"features": torch.zeros(2)})
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:-5])
    with pytest.raises(ValueError, match=rf"{kept.name} is damaged .* delete it"):
        cache.get("a")


def test_fingerprint_changes_with_the_files(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(b"1")
    (tmp_path / "b.png").write_bytes(b"2")
    seen = [folder_fingerprint(tmp_path)]
    assert folder_fingerprint(tmp_path) == seen[0]
    os.utime(tmp_path / "b.png", ns=(1, 1))
    seen.append(folder_fingerprint(tmp_path))
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    seen.append(folder_fingerprint(tmp_path))
    (tmp_path / "cat" / "a.png").unlink()
    seen.append(folder_fingerprint(tmp_path))
    assert len(set(seen)) == 4
    with pytest.raises(FileNotFoundError, match="expected an existing one"):
        folder_fingerprint(tmp_path / "dog")
