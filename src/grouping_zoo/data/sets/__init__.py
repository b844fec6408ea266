"""The data sets, and their registry: importing this package registers them."""

from grouping_zoo.data.sets import coco, densepose, folders, layouts, objects, photos, scenes, tables
from grouping_zoo.data.sets.registry import (
    DataSet,
    ImageSet,
    Knowledge,
    SetOptions,
    data_sets,
    find_set,
    open_captions,
    open_set,
    register,
    set_names,
    set_spec,
)

__all__ = [
    "DataSet",
    "ImageSet",
    "Knowledge",
    "SetOptions",
    "coco",
    "data_sets",
    "densepose",
    "find_set",
    "folders",
    "layouts",
    "objects",
    "open_captions",
    "open_set",
    "photos",
    "register",
    "scenes",
    "set_names",
    "set_spec",
    "tables",
]
