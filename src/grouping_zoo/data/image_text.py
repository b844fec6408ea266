"""Image-text sources, and the training samples made of them.

A source gives images with captions: the built-in scenes, a folder with a table of captions, a data set of the hub, or
a stream of shards. `ImageTextDataset` and its twin for streams, `ImageTextStream`, make training samples of them.
"""

import glob
import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, Protocol

import datasets
import fsspec
import numpy as np
import torch
import torch.distributed
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from torchvision.transforms.v2.functional import pil_to_tensor

from grouping_zoo.data.captions import PROMPT_TEMPLATES, NounExtractor, prompt, sample_labels
from grouping_zoo.data.images import CorruptImages, open_image
from grouping_zoo.data.sampling import SampleKey
from grouping_zoo.data.views import Transform

# Column names in use, the first that is there is taken.
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "file_name", "img")
CAPTION_COLUMNS = ("caption", "captions", "text", "txt", "sentences", "json")

# Where a stream starts in a shard: block of rows, rows given of it, and the state of the rows before it.
SHARD_START: dict[str, Any] = {"block": 0, "offset": 0, "rows": None}

FOLDER_LAYOUT = (
    "FOLDER/metadata.csv (or metadata.jsonl) with the columns file_name,caption and rows such as "
    "`images/1.jpg,a red ball`, next to FOLDER/images/1.jpg"
)


class CaptionedImage(NamedTuple):
    """What a source gives; a `Scene` has these attributes as well.

    Attributes:
        image: an RGB image, or an (H, W, 3) uint8 array.
        caption: one sentence.
        nouns: what the caption names, where the source knows it.
    """

    image: Image.Image | np.ndarray
    caption: str
    nouns: tuple[str, ...] | None = None


class ImageTextSource(Protocol):
    """A map-style source: what it gives depends on the key alone."""

    def __len__(self) -> int:
        """Return the number of samples an epoch."""

    def __getitem__(self, key: SampleKey) -> Any:
        """Return an object with `image`, `caption` and `nouns`."""


class RowReader:
    """Reads rows of a table, of which one column holds images and another captions.

    Of several captions, or sentences, of an image each epoch takes the next.

    Args:
        name: what errors call the table.
        columns: its column names.
        folder: where image paths start.
        corrupt: counts the rows that cannot be read; by default at most 5 % of them.

    Raises:
        ValueError: if there is no such column.
    """

    def __init__(self, name: str, columns: Sequence[str], folder: Path, corrupt: CorruptImages | None = None) -> None:
        self.name = name
        self.image_column = self._find(IMAGE_COLUMNS, columns, "images")
        self.caption_column = self._find(CAPTION_COLUMNS, columns, "captions")
        self.folder = folder
        self.corrupt = CorruptImages() if corrupt is None else corrupt

    def _find(self, known: Sequence[str], columns: Sequence[str], what: str) -> str:
        for column in known:
            if column in columns:
                return column
        raise ValueError(
            f"{self.name}: expected a column of {what} called one of {', '.join(known)}, got {', '.join(columns)}; "
            "rename the column"
        )

    def read(self, row: dict[str, Any], number: str, epoch: int) -> CaptionedImage | None:
        """Return a row's image and caption, or None, counted, if they cannot be read."""
        value = row[self.image_column]
        path = value.get("path") if isinstance(value, dict) else value if isinstance(value, str) else None
        name = f"{path or 'row'} ({self.name}, {number})"
        try:
            caption = self.caption_text(row[self.caption_column], epoch)
            if not caption:
                raise ValueError(f"image {name}: expected a caption, got none; fill it in or remove the row")
            sample = CaptionedImage(self._image(value, name), caption)
        except (ValueError, FileNotFoundError) as error:
            self.corrupt.skip(name, error)
            return None
        self.corrupt.count_read()
        return sample

    def _image(self, value: Any, name: str) -> Image.Image:
        if isinstance(value, dict) and value.get("bytes") is not None:
            return open_image(io.BytesIO(value["bytes"]), name=name)
        path = value.get("path") if isinstance(value, dict) else value
        if isinstance(path, str) and "://" in path:  # a stream leaves its files where they are
            with fsspec.open(path, "rb") as file:
                return open_image(io.BytesIO(file.read()), name=name)
        if isinstance(path, str):
            return open_image(self.folder / path)
        raise ValueError(f"image {name}: expected a path or an encoded image, got {type(value).__name__}")

    def caption_text(self, value: Any, epoch: int) -> str:
        """Return what a field of the caption column says in an epoch; empty if it says nothing."""
        if isinstance(value, dict):  # the JSON field of a shard
            value = value.get("caption") or value.get("text")
        if isinstance(value, list):
            value = value[epoch % len(value)] if value else None
        return "" if value is None else str(value).strip()


class CaptionedImages(Dataset[CaptionedImage]):
    """Map-style source over a table; a row that cannot be read is replaced by the next one that can.

    Args:
        rows: the table; images are paths or encoded files.
        name: what errors call it.
        folder: where image paths start.
        corrupt: counts the rows that cannot be read, in each process and worker for itself.
    """

    def __init__(
        self, rows: datasets.Dataset, name: str, folder: Path = Path(), corrupt: CorruptImages | None = None
    ) -> None:
        if len(rows) == 0:
            raise ValueError(f"{name}: expected at least one row, got none; check the file or the split")
        self.reader = RowReader(name, rows.column_names, folder, corrupt)
        feature = rows.features[self.reader.image_column]
        self.rows = rows
        if isinstance(feature, datasets.Image):
            # Decoded here: one damaged image must not stop the run.
            self.rows = rows.cast_column(self.reader.image_column, datasets.Image(decode=False))

    def captions(self) -> list[str]:
        """Return each image's first caption without reading the images; rows that have none are left out."""
        captions = self.rows[self.reader.caption_column]
        return [text for text in (self.reader.caption_text(caption, epoch=0) for caption in captions) if text]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: SampleKey | int) -> CaptionedImage:
        epoch, index = key if isinstance(key, tuple) else (0, int(key))
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}")
        for offset in range(len(self)):
            number = (index + offset) % len(self)
            sample = self.reader.read(self.rows[number], f"row {number}", epoch)
            if sample is not None:
                return sample
        raise ValueError(f"{self.reader.name}: expected readable images, but none of {len(self)} is; check the paths")


def captioned_folder(folder: str | PathLike[str], corrupt: CorruptImages | None = None) -> CaptionedImages:
    """Open a folder of images with a table of captions.

    Args:
        folder: holds ``metadata.csv`` or ``metadata.jsonl`` with the columns ``file_name`` (paths in the folder) and
            ``caption`` or ``text``.
        corrupt: counts the images that cannot be read.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has no captions.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: expected a folder of captioned images, but {folder} is none; check the path")
    tables = [folder / name for name in ("metadata.csv", "metadata.jsonl") if (folder / name).is_file()]
    if not tables:
        raise ValueError(
            f"folder: expected captions in {folder}, got no metadata.csv or .jsonl; lay out {FOLDER_LAYOUT}"
        )
    try:
        # A cache of its own: the user's would keep a copy of every version of the table.
        with TemporaryDirectory() as cache:
            options: dict[str, Any] = {"cache_dir": cache, "keep_in_memory": True}
            if tables[0].suffix == ".csv":  # a caption "none" is a word, not a missing value
                rows = datasets.Dataset.from_csv(str(tables[0]), keep_default_na=False, **options)
            else:
                rows = datasets.Dataset.from_json(str(tables[0]), **options)
    except (datasets.exceptions.DatasetGenerationError, StopIteration) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(
            f"{tables[0]}: expected a table of captions, got: {reason}; lay out {FOLDER_LAYOUT}"
        ) from error
    captions = [name for name in ("caption", "text") if name in rows.column_names]
    if "file_name" not in rows.column_names or not captions:
        raise ValueError(
            f"{tables[0]}: expected the columns file_name and caption (or text), got {', '.join(rows.column_names)}; "
            f"lay out {FOLDER_LAYOUT}"
        )
    return CaptionedImages(rows.select_columns(["file_name", captions[0]]), str(tables[0]), folder, corrupt)


class CaptionedStream:
    """A source that is read from front to back, in shards.

    Args:
        rows: the stream; images are paths or encoded files.
        name: what errors call it.
        corrupt: counts the rows that cannot be read, in each process and worker for itself.
    """

    def __init__(self, rows: datasets.IterableDataset, name: str, corrupt: CorruptImages | None = None) -> None:
        if rows.features:
            rows = rows.decode(False)  # decoded here: one damaged image must not stop the run
        columns = list(rows.features or next(iter(rows), {}))
        self.reader = RowReader(name, columns, Path(), corrupt)
        self.rows = rows


def hub_images(
    name: str, split: str = "train", streaming: bool = False, corrupt: CorruptImages | None = None
) -> CaptionedImages | CaptionedStream:
    """Open a data set of the hub with a column of images and one of captions.

    Args:
        name: the repository, or what else `datasets.load_dataset` reads.
        split: which part of it.
        streaming: read it while it is downloaded, shard by shard.
        corrupt: counts the images that cannot be read.
    """
    rows = datasets.load_dataset(name, split=split, streaming=streaming)
    if streaming:
        return CaptionedStream(rows, name, corrupt)
    return CaptionedImages(rows, name, corrupt=corrupt)


def shard_stream(shards: str | PathLike[str] | Sequence[str], corrupt: CorruptImages | None = None) -> CaptionedStream:
    """Open webdataset shards: tar files with members such as ``000.jpg`` and ``000.txt`` (or ``000.json``).

    Args:
        shards: a folder, a pattern such as ``shards/*.tar``, or paths or URLs one by one.
        corrupt: counts the images that cannot be read.

    Raises:
        FileNotFoundError: if there is no shard.
    """
    if isinstance(shards, str | PathLike):
        pattern = str(Path(shards) / "*.tar") if Path(shards).is_dir() else str(shards)
        files = [pattern] if "://" in pattern else sorted(glob.glob(pattern, recursive=True))
    else:
        files = list(shards)
    if not files:
        raise FileNotFoundError(f"shards: expected .tar files, got none at {shards}; check the folder or pattern")
    rows = datasets.load_dataset("webdataset", data_files={"train": files}, split="train", streaming=True)
    return CaptionedStream(rows, str(shards), corrupt)


def noun_key(noun: str) -> int:
    """Return 63 bits that are equal for equal nouns, whatever their case, in every process and run."""
    return int.from_bytes(hashlib.blake2b(noun.lower().encode(), digest_size=8).digest()) >> 1


class SampleMaker:
    """Makes training samples of captioned images.

    Args:
        transform: (3, H, W) uint8 tensor -> (3, h, w) float32 tensor; it may draw from torch's random generator.
        tokenize: n texts -> (n, T) int64.
        noun_extractor: caption -> nouns; the source's own nouns are taken without one.
        num_nouns: number K of nouns a sample.
        fill: what stands where there are too few nouns, see `sample_labels`.
        seed: of everything random.
        templates: prompts that nouns are put into, by chance.
    """

    def __init__(
        self,
        transform: Transform,
        tokenize: Callable[[list[str]], Tensor],
        noun_extractor: NounExtractor | None = None,
        num_nouns: int = 3,
        fill: Literal["pad", "caption"] = "pad",
        seed: int = 0,
        templates: Sequence[str] = PROMPT_TEMPLATES,
    ) -> None:
        self.transform = transform
        self.tokenize = tokenize
        self.noun_extractor = noun_extractor
        self.num_nouns = num_nouns
        self.fill: Literal["pad", "caption"] = fill
        self.seed = seed
        self.templates = templates

    def __call__(self, sample: Any, *key: int) -> dict[str, Tensor]:
        """Make a sample, random by (seed, key) alone.

        Returns:
            ``pixel_values`` (3, h, w) float32, ``input_ids`` (T,) int64, ``noun_ids`` (K, T) int64, ``noun_mask`` (K,)
            bool, ``noun_keys`` (K,) int64, -1 where padded.
        """
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))
        nouns = self._nouns(sample)
        labels, valid = sample_labels(nouns, sample.caption, self.num_nouns, self.fill, rng)
        texts = [prompt(label, rng, self.templates) if label in nouns else label for label in labels]
        input_ids = self.tokenize([sample.caption, *texts])  # (1 + K, T)
        return {
            "pixel_values": self._view(sample.image, int(rng.integers(2**63 - 1))),
            "input_ids": input_ids[0],
            "noun_ids": input_ids[1:],
            "noun_mask": torch.tensor(valid, dtype=torch.bool),
            "noun_keys": torch.tensor(
                [noun_key(label) if real else -1 for label, real in zip(labels, valid, strict=True)], dtype=torch.int64
            ),
        }

    def _nouns(self, sample: Any) -> tuple[str, ...]:
        if self.num_nouns == 0:
            return ()
        if self.noun_extractor is not None:
            return self.noun_extractor(sample.caption)
        if sample.nouns is None:
            raise ValueError(
                "noun_extractor: expected one, as the source gives captions without nouns, got None; "
                "set a VocabularyNounExtractor or NltkNounExtractor, or num_nouns=0"
            )
        return sample.nouns

    def _view(self, image: Image.Image | np.ndarray, seed: int) -> Tensor:
        if isinstance(image, Image.Image):
            pixels = pil_to_tensor(image)
        else:
            pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also seed the accelerators, which fork_rng does not restore here.
            torch.default_generator.manual_seed(seed)
            return self.transform(pixels)


class ImageTextDataset(Dataset[dict[str, Tensor]]):
    """Map-style training samples, indexed by `SampleKey`: random by (seed, epoch, index) alone.

    Args:
        source: `Scenes`, `CaptionedImages` or alike.
        transform: see `SampleMaker` for this and the others.
        tokenize: texts -> token ids.
        noun_extractor: caption -> nouns.
        num_nouns: number of nouns a sample.
        fill: what stands where there are too few nouns.
        seed: of everything random.
        templates: prompts of the nouns.
    """

    def __init__(
        self,
        source: ImageTextSource,
        transform: Transform,
        tokenize: Callable[[list[str]], Tensor],
        noun_extractor: NounExtractor | None = None,
        num_nouns: int = 3,
        fill: Literal["pad", "caption"] = "pad",
        seed: int = 0,
        templates: Sequence[str] = PROMPT_TEMPLATES,
    ) -> None:
        self.source = source
        self.make = SampleMaker(transform, tokenize, noun_extractor, num_nouns, fill, seed, templates)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey | int) -> dict[str, Tensor]:
        """Return the sample of a key, see `SampleMaker`; a plain index is one of epoch 0."""
        key = key if isinstance(key, tuple) else SampleKey(0, int(key))
        return self.make(self.source[key], *key)


class ImageTextStream(IterableDataset[dict[str, Tensor]]):
    """Endless training samples of a stream, sharded by process and worker, resumable at any sample.

    Each epoch deals the shards out anew, and shuffles their rows in blocks. A block is read again when a stream
    resumes: so nothing is lost or repeated, which a running shuffle buffer cannot promise. What is random in a sample
    depends on (seed, epoch, shard, row) alone, the order also on the number of processes and workers.

    Args:
        source: the stream.
        transform: see `SampleMaker` for this and the others.
        tokenize: texts -> token ids.
        noun_extractor: caption -> nouns.
        num_nouns: number of nouns a sample.
        fill: what stands where there are too few nouns.
        seed: of everything random.
        templates: prompts of the nouns.
        block_size: number of encoded rows that are held in memory and shuffled.
        rank: this process; by default that of `torch.distributed`.
        world_size: number of processes; by default that of `torch.distributed`.

    Raises:
        ValueError: if there are fewer shards than processes.
    """

    def __init__(
        self,
        source: CaptionedStream,
        transform: Transform,
        tokenize: Callable[[list[str]], Tensor],
        noun_extractor: NounExtractor | None = None,
        num_nouns: int = 3,
        fill: Literal["pad", "caption"] = "pad",
        seed: int = 0,
        templates: Sequence[str] = PROMPT_TEMPLATES,
        *,
        block_size: int = 1000,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = (torch.distributed.get_rank() if distributed else 0) if rank is None else rank
        self.world_size = (
            (torch.distributed.get_world_size() if distributed else 1) if world_size is None else world_size
        )
        self.reader = source.reader
        self.num_shards = source.rows.num_shards
        self.check_shards(num_workers=1)
        self.rows = source.rows
        self.make = SampleMaker(transform, tokenize, noun_extractor, num_nouns, fill, seed, templates)
        self.block_size = block_size
        self.position: dict[str, Any] = {"epoch": 0, "shard": 0, **SHARD_START}

    def check_shards(self, num_workers: int) -> None:
        """Raise a ValueError if some worker of some process would get no shard; iteration does so by itself."""
        needed = self.world_size * num_workers
        if self.num_shards < needed:
            raise ValueError(
                f"{self.reader.name}: expected at least {needed} shards ({self.world_size} processes x {num_workers} "
                f"workers), got {self.num_shards}; lower run.num_workers or split the data into more shards"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the position behind the sample given last."""
        return dict(self.position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a position that `state_dict` gave."""
        self.position = dict(state)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        self.check_shards(workers)
        lane, lanes = self.rank * workers + number, self.world_size * workers
        while True:
            epoch, first = self.position["epoch"], self.position["shard"]
            whole_epoch, read = self.position == {"epoch": epoch, "shard": 0, **SHARD_START}, self.reader.corrupt.read
            order = np.random.default_rng([self.make.seed, epoch]).permutation(self.num_shards)
            for shard in order[lane::lanes][first:].tolist():
                try:
                    yield from self._shard(epoch, shard)
                except tarfile.TarError as error:  # the rest of a truncated shard is lost
                    self.reader.corrupt.skip(f"shard {shard} ({self.reader.name})", error)
                self.position = {"epoch": epoch, "shard": self.position["shard"] + 1, **SHARD_START}
            if whole_epoch and self.reader.corrupt.read == read:
                raise ValueError(f"{self.reader.name}: expected readable rows, got none for process {self.rank}")
            self.position = {"epoch": epoch + 1, "shard": 0, **SHARD_START}

    def _shard(self, epoch: int, shard: int) -> Iterator[dict[str, Tensor]]:
        """Give a shard's samples from the present position on."""
        rows = self.rows.shard(num_shards=self.num_shards, index=shard)
        rows.load_state_dict(self.position["rows"])
        # Unlike iter(rows), this leaves the division over workers to us.
        for columns in rows.iter(batch_size=self.block_size):
            behind = rows.state_dict()
            block, count = self.position["block"], len(columns[self.reader.image_column])
            order = np.random.default_rng([self.make.seed, epoch, shard, block]).permutation(count).tolist()
            for offset in range(self.position["offset"], count):
                self.position["offset"] = offset + 1
                number = block * self.block_size + order[offset]
                row = {name: values[order[offset]] for name, values in columns.items()}
                sample = self.reader.read(row, f"shard {shard}, row {number}", epoch)
                if sample is not None:
                    yield self.make(sample, epoch, shard, number)
            self.position |= {"block": block + 1, "offset": 0, "rows": behind}


def collate(samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack samples to a batch, each entry along a new first axis."""
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
