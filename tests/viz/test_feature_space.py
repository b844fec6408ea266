import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from grouping_zoo.viz.feature_space import feature_space_plot, neighbour_map
from grouping_zoo.viz.palette import palette

NAMES = ["background", "cat", "cup", "dog"]


def clouds(each: int) -> tuple[np.ndarray, np.ndarray]:
    """Three directions, any length, and which of them."""
    generator = np.random.default_rng(0)
    classes = np.repeat(np.arange(3), each)
    features = np.eye(8)[classes] + 0.05 * generator.standard_normal((len(classes), 8))
    return features * generator.uniform(0.1, 9, (len(classes), 1)), classes


def test_features_of_one_direction_lie_together() -> None:
    features, classes = clouds(20)
    places = neighbour_map(features)
    nearest = NearestNeighbors(n_neighbors=2).fit(places).kneighbors(places)[1][:, 1]
    assert (classes[nearest] == classes).mean() > 0.95
    np.testing.assert_array_equal(places, neighbour_map(features))


def test_the_picture_shows_each_class_in_its_colour() -> None:
    features, classes = clouds(12)
    picture = np.asarray(feature_space_plot(features, np.array([0, 2, 3])[classes], NAMES))
    shown = [bool((picture[:720] == color).all(axis=2).sum() > 100) for color in palette(4)]
    assert shown == [True, False, True, True]


def test_few_and_equal_features() -> None:
    assert np.isfinite(neighbour_map(np.ones((6, 3)))).all()
    assert np.isfinite(neighbour_map(np.zeros((5, 3)))).all()
    assert neighbour_map(np.arange(4.0)[:, None]).shape == (4, 2)
    assert min(feature_space_plot(np.ones((4, 2)), np.zeros(4, np.int64), ["a"]).size) > 400
    with pytest.raises(ValueError, match="features: expected at least 4 to place, got 3"):
        neighbour_map(np.ones((3, 2)))
