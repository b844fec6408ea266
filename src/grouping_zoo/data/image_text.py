"""Training samples of captioned images: `ImageTextDataset` and its twin for streams, `ImageTextStream`."""

import hashlib
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from torchvision.transforms.v2.functional import pil_to_tensor

from grouping_zoo.data.captioned import CaptionedStream, ImageTextSource
from grouping_zoo.data.captions import PROMPT_TEMPLATES, NounExtractor, prompt, sample_labels
from grouping_zoo.data.images import Unreadable
from grouping_zoo.data.sampling import SampleKey, seeded_rng
from grouping_zoo.data.views import Transform

# Where a stream starts in a shard: block of rows, rows given of it, and the state of the rows before it.
SHARD_START: dict[str, Any] = {"block": 0, "offset": 0, "rows": None}


def noun_key(noun: str) -> int:
    """Return 63 bits that are equal for equal nouns, whatever their case, in every process and run."""
    return int.from_bytes(hashlib.blake2b(noun.lower().encode(), digest_size=8).digest()) >> 1


@dataclass(frozen=True, kw_only=True)
class SampleMaker:
    """Makes training samples of captioned images.

    Args:
        transform: (3, H, W) uint8 tensor -> (3, h, w) float32 tensor; it may draw from torch's random generator.
        tokenize: n texts -> (n, T) int64.
        noun_extractor: caption -> nouns; the source's own nouns are taken without one.
        num_nouns: number K of nouns a sample.
        fill: what stands where there are too few nouns, see `sample_labels`.
        seed: seed of everything random.
        templates: prompts that nouns are put into, by chance.
    """

    transform: Transform
    tokenize: Callable[[list[str]], Tensor]
    noun_extractor: NounExtractor | None = None
    num_nouns: int = 3
    fill: Literal["pad", "caption"] = "pad"
    seed: int = 0
    templates: Sequence[str] = PROMPT_TEMPLATES

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
        with seeded_rng(seed):
            return self.transform(pixels)


class ImageTextDataset(Dataset[dict[str, Tensor]]):
    """Map-style training samples, indexed by `SampleKey`: random by (seed, epoch, index) alone.

    Args:
        source: `Scenes`, `CaptionedImages` or alike.
        make: makes the samples.
    """

    def __init__(self, source: ImageTextSource, make: SampleMaker) -> None:
        self.source = source
        self.make = make

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
        make: makes the samples.
        block_size: number of encoded rows that are held in memory and shuffled.
        rank: this process; by default that of `torch.distributed`.
        world_size: number of processes; by default that of `torch.distributed`.

    Raises:
        ValueError: if there are fewer shards than processes.
    """

    def __init__(
        self,
        source: CaptionedStream,
        make: SampleMaker,
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
        self.make = make
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
            block, count = self.position["block"], len(columns[self.reader.caption_column])
            order = np.random.default_rng([self.make.seed, epoch, shard, block]).permutation(count).tolist()
            for offset in range(self.position["offset"], count):
                self.position["offset"] = offset + 1
                number = block * self.block_size + order[offset]
                row = {name: values[order[offset]] for name, values in columns.items()}
                sample = self.reader.read(row, f"shard {shard}, row {number}", epoch)
                if not isinstance(sample, Unreadable):
                    yield self.make(sample, epoch, shard, number)
            self.position |= {"block": block + 1, "offset": 0, "rows": behind}


def collate(samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack samples to a batch, each entry along a new first axis."""
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
