"""The registry of data sets: what a set is called, what it knows of its images, and how it is opened.

A set registers itself where it is defined; the command line, recipes, help texts and error messages read the registry.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from grouping_zoo.data.image_source import ImageSource, LabelledImage, StoredImages
from grouping_zoo.data.images import CorruptImages, Unreadable
from grouping_zoo.data.sampling import SampleKey

DEFAULT_SET = "scenes"
Knowledge = Literal["label", "mask", "caption"]


@dataclass(frozen=True, kw_only=True)
class SetOptions:
    """Settings of sets whose images are made when they are read; `streaming` alone is for others.

    Attributes:
        length: number of images an epoch.
        image_size: side, or (height, width), of an image in pixels.
        seed: seed of everything random.
        max_objects: largest number of objects in a scene; with 1, the object's class is the scene's label.
        recolor: fraction of the scenes that show their photo in other colors.
        streaming: read a hub data set while it is downloaded.
    """

    length: int = 10_000
    image_size: int | tuple[int, int] = 224
    seed: int = 0
    max_objects: int = 3
    recolor: float = 0.0
    streaming: bool = False


class ImageSet(ImageSource):
    """An image source, and what the values of its masks mean.

    Args:
        source: gives the images; `mask` holds class indices.
        name: name of the set in tables and errors.
        class_names: names of the masks' values 0, 1, ...; of the labels where there are no masks.
        background: index of the class that stands for everything that is no class, if there is one.
        ignore_index: value of pixels that do not count, None where all do.
        palette: published colors of the classes, (number of classes, 3) uint8, if there are any.
        mirrored_classes: pairs of class indices that a mirrored image exchanges, such as left and right hand.
    """

    def __init__(
        self,
        source: ImageSource,
        name: str,
        class_names: tuple[str, ...],
        *,
        background: int | None = None,
        ignore_index: int | None = None,
        palette: np.ndarray | None = None,
        mirrored_classes: tuple[tuple[int, int], ...] = (),
    ) -> None:
        self.source = source
        self.name = name
        self.class_names = class_names
        self.background = background
        self.ignore_index = ignore_index
        self.palette = palette
        self.mirrored_classes = mirrored_classes

    @property
    def object_names(self) -> tuple[str, ...]:
        """The class names without the background: what texts are made for, and what an image's `label` counts."""
        return tuple(name for number, name in enumerate(self.class_names) if number != self.background)

    @property
    def corrupt(self) -> CorruptImages | None:
        """Count of the images that could not be read, None for a source that is not read from files."""
        return self.source.corrupt if isinstance(self.source, StoredImages) else None

    def __len__(self) -> int:
        return len(self.source)

    def _read(self, epoch: int, index: int) -> LabelledImage:
        return self.source[SampleKey(epoch, index)]

    def read(self, index: int) -> LabelledImage | Unreadable:
        """Return an image for evaluation: one that cannot be read is counted, and not replaced by another one.

        Raises:
            ValueError: when too many cannot be read.
        """
        if not isinstance(self.source, StoredImages):
            return self.source[index]
        return self.source.corrupt.attempt(self.source.name_of(index), self.source.read_one, index)

    def readable(self, indices: Iterable[int]) -> Iterator[tuple[int, LabelledImage]]:
        """Yield index and image of those that can be read; see `read`."""
        for index in indices:
            found = self.read(index)
            if not isinstance(found, Unreadable):
                yield index, found


OpenImages = Callable[[str, str | None, SetOptions], ImageSet]
OpenCaptions = Callable[[str, str | None, SetOptions], Any]


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One entry of the registry.

    Attributes:
        name: name in a spec, "voc" of "voc:DIR".
        help: the set in a few words.
        knows: what is known of its images.
        location: what a spec names beside the set, "DIR" for example; None for a set that is built in.
        open_images: function of location, split and options that opens the images; None for captions only.
        open_captions: likewise the images with captions, for a set that knows them.
    """

    name: str
    help: str
    knows: tuple[Knowledge, ...]
    location: str | None = None
    open_images: OpenImages | None = None
    open_captions: OpenCaptions | None = None

    @property
    def is_built_in(self) -> bool:
        """Whether its images come with the package, at any size."""
        return self.location is None

    @property
    def has_objects(self) -> bool:
        """Whether its images are made with `SetOptions.max_objects` objects, and have a label with a single one."""
        return self.is_built_in and {"label", "mask"} <= set(self.knows)

    @property
    def spec(self) -> str:
        """Its name on the command line and in recipes: "scenes", "voc:DIR"."""
        return self.name if self.location is None else f"{self.name}:{self.location}"


_SETS: dict[str, DataSet] = {}


def register(data_set: DataSet) -> None:
    """Add a data set to the registry.

    Raises:
        ValueError: if there is one of this name.
    """
    if data_set.name in _SETS:
        raise ValueError(f"data set: expected a new name, got {data_set.name!r}, which is taken; choose another one")
    _SETS[data_set.name] = data_set


def data_sets(knows: Sequence[Knowledge] = ("label", "mask")) -> list[DataSet]:
    """Return the sets that know one of these, the default and those that are built in first."""
    found = [entry for entry in _SETS.values() if set(knows) & set(entry.knows)]
    return sorted(found, key=lambda entry: (entry.name != DEFAULT_SET, not entry.is_built_in))


def set_names(knows: Sequence[Knowledge] = ("label", "mask")) -> str:
    """Return the specs of the sets that know one of these, for help texts: "scenes, digits, voc:DIR, ..."."""
    return ", ".join(entry.spec for entry in data_sets(knows))


def find_set(spec: str, knows: Sequence[Knowledge] = ("label", "mask")) -> tuple[DataSet, str]:
    """Find the registered set of a spec.

    Args:
        spec: "scenes", "voc:DIR", ...
        knows: what is asked of its images; one of them is enough.

    Returns:
        the set and the location, "" for one that is built in.

    Raises:
        ValueError: if there is no such set, or the location is missing or superfluous.
    """
    name, _, location = spec.partition(":")
    entry = _SETS.get(name)
    if entry is None or entry not in data_sets(knows) or entry.is_built_in == bool(location):
        raise ValueError(f"data: expected one of {set_names(knows)}, got {spec!r}; choose one of them")
    return entry, location


def set_spec(source: str, location: str | None, objects: str = "shapes") -> str:
    """Return the spec of a recipe's settings, in which the location may stand apart and digits be a kind of scenes.

    Args:
        source: "scenes", "voc:DIR", "voc".
        location: the "DIR" of the last one.
        objects: of scenes, "shapes" or "digits".
    """
    if (source, objects) == ("scenes", "digits"):
        source = "digits"
    return source if location is None else f"{source}:{location}"


def open_set(spec: str, split: str | None = "validation", **options: Any) -> ImageSet:
    """Open a data set with labels or masks.

    Args:
        spec: "scenes", "voc:DIR", ...; see `set_names`.
        split: "train", "validation", or the data set's own name of another one; None for all images of a folder.
        options: see `SetOptions`.

    Returns:
        the set, indexed by `SampleKey` or a plain index.

    Raises:
        ValueError: for another spec, a file that is not what it should be, or no images.
        FileNotFoundError: if the folder has another layout, or no such split.
    """
    entry, location = find_set(spec)
    assert entry.open_images is not None
    return entry.open_images(location, split, SetOptions(**options))


def open_captions(spec: str, split: str | None = "train", **options: Any) -> Any:
    """Open a data set with captions: a map-style source or a `CaptionedStream`.

    Args:
        spec: "scenes", "folder:DIR", ...; see `set_names` of captions.
        split: see `open_set`.
        options: see `SetOptions`.

    Raises:
        ValueError: see `open_set`.
        FileNotFoundError: likewise.
    """
    entry, location = find_set(spec, ("caption",))
    assert entry.open_captions is not None
    return entry.open_captions(location, split, SetOptions(**options))
