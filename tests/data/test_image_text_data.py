import dataclasses
import io
import itertools
import tarfile

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from grouping_zoo.data.captioned import (
    CaptionedImage,
    CaptionedImages,
    CaptionedStream,
    captioned_folder,
    hub_images,
    shard_stream,
)
from grouping_zoo.data.captions import VocabularyNounExtractor
from grouping_zoo.data.image_text import ImageTextDataset, ImageTextStream, SampleMaker, collate, noun_key
from grouping_zoo.data.images import CorruptImages
from grouping_zoo.data.input_transform import normalized
from grouping_zoo.data.sampling import EndlessSampler, SampleKey
from grouping_zoo.data.sets.scenes import Scenes
from grouping_zoo.data.views import train_transform

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def tokenize(texts):
    return torch.tensor([[*text.encode()[:40], *[0] * (40 - len(text[:40]))] for text in texts])


def plain(view):
    """The pixels as they are."""
    return normalized(view, MEAN, STD)


def text_of(ids):
    return bytes(ids.tolist()).rstrip(b"\0").decode()


def scenes_dataset(**settings):
    transform = train_transform(32, MEAN, STD, color_jitter=0.4, rand_augment=True, erasing=0.25)
    return ImageTextDataset(
        Scenes(length=12, image_size=32), SampleMaker(transform=transform, tokenize=tokenize, **settings)
    )


def encoded_png(value):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(file, "png")
    return file.getvalue()


def write_shards(folder, count=4, rows=7, broken=()):
    for shard in range(count):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as tar:
            for row in range(rows):
                number = shard * rows + row
                image = b"broken" if number in broken else encoded_png(number)
                for extension, data in (("png", image), ("txt", f"dog {number}".encode())):
                    info = tarfile.TarInfo(f"{number:04d}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


def stream(folder, **settings):
    make = SampleMaker(
        transform=plain,
        tokenize=tokenize,
        noun_extractor=VocabularyNounExtractor(["dog"]),
        seed=settings.pop("seed", 0),
    )
    return ImageTextStream(shard_stream(folder), make, **{"block_size": 5} | settings)


def captions(samples):
    return [text_of(sample["input_ids"]) for sample in samples]


def test_sample_contract():
    batch = collate([scenes_dataset(num_nouns=4)[i] for i in range(3)])
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "pixel_values": ((3, 3, 32, 32), torch.float32),
        "input_ids": ((3, 40), torch.int64),
        "noun_ids": ((3, 4, 40), torch.int64),
        "noun_mask": ((3, 4), torch.bool),
        "noun_keys": ((3, 4), torch.int64),
    }
    for index in range(3):
        scene = Scenes(length=12, image_size=32)[index]
        count = len(scene.nouns)
        assert batch["noun_mask"][index].tolist() == [True] * count + [False] * (4 - count)
        assert set(batch["noun_keys"][index, :count].tolist()) == {noun_key(noun) for noun in scene.nouns}
        assert (batch["noun_keys"][index, count:] == -1).all()
        prompts = [text_of(ids) for ids in batch["noun_ids"][index]]
        assert all(any(noun in text for noun in scene.nouns) for text in prompts[:count])
        assert prompts[count:] == [""] * (4 - count)
        assert text_of(batch["input_ids"][index]) == scene.caption[:40]


def test_captions_fill_missing_nouns_unprompted():
    dataset = scenes_dataset(num_nouns=4, fill="caption")
    sample, scene = dataset[0], dataset.source[0]
    assert sample["noun_mask"].all()
    assert text_of(sample["noun_ids"][-1]) == scene.caption[:40]
    assert sample["noun_keys"][-1] == noun_key(scene.caption)


def test_noun_keys_are_stable_and_ignore_case():
    assert noun_key("Dog") == noun_key("dog") != noun_key("dogs")
    assert noun_key("dog") == 2072328596179865167
    assert all(0 <= noun_key(str(i)) < 2**63 for i in range(100))


def test_samples_depend_on_seed_epoch_and_index_alone():
    dataset = scenes_dataset()
    reference = dataset[SampleKey(1, 2)]
    torch.manual_seed(7)
    state = torch.get_rng_state()
    again = scenes_dataset()[SampleKey(1, 2)]
    assert torch.equal(torch.get_rng_state(), state)  # the training's own random numbers are left alone
    assert all(torch.equal(reference[name], again[name]) for name in reference)
    assert not torch.equal(scenes_dataset(seed=1)[SampleKey(1, 2)]["pixel_values"], reference["pixel_values"])
    assert not torch.equal(dataset[SampleKey(2, 2)]["pixel_values"], reference["pixel_values"])


def test_workers_do_not_change_batches():
    dataset = scenes_dataset()

    def batches(workers):
        sampler = EndlessSampler(len(dataset), batch_size=5, seed=0)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate)
        return list(itertools.islice(loader, 4))

    for one, other in zip(batches(0), batches(2), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_source_without_nouns_needs_an_extractor():
    source = [CaptionedImage(Image.new("RGB", (9, 9)), "a dog")]
    make = SampleMaker(transform=plain, tokenize=tokenize)
    assert dataclasses.replace(make, num_nouns=0)(source[0], 0)["noun_ids"].shape == (0, 40)
    with pytest.raises(ValueError, match="noun_extractor"):
        make(source[0], 0)
    sample = dataclasses.replace(make, noun_extractor=VocabularyNounExtractor(["dog"]))(source[0], 0)
    assert sample["noun_keys"].tolist() == [noun_key("dog"), -1, -1]


@pytest.mark.parametrize("size", [24, (16, 24)])
def test_views(size):
    image = torch.full((3, 40, 60), 255, dtype=torch.uint8)
    expected = (3, 24, 24) if size == 24 else (3, 16, 24)
    transform = train_transform(size, MEAN, STD)
    for given in (image, Image.new("RGB", (60, 40), "white")):
        view = transform(given)
        assert type(view) is torch.Tensor
        assert (tuple(view.shape), view.dtype) == (expected, torch.float32)
        torch.testing.assert_close(view, torch.full(expected, 2.0))  # (1 - 0.5) / 0.25


def test_erasing_and_flip_can_be_switched():
    image = torch.arange(256, dtype=torch.uint8).expand(3, 256, 256)
    plain = train_transform(256, MEAN, STD, scale=(1, 1), flip=False)
    assert all((plain(image).diff(dim=-1) > -0.1).all() for _ in range(8))
    erased = train_transform(64, MEAN, STD, erasing=1.0)(torch.zeros(3, 64, 64, dtype=torch.uint8))
    assert (erased != -2).any()
    with pytest.raises(ValueError, match="scale"):
        train_transform(64, MEAN, STD, scale=(0.5, 0.2))
    with pytest.raises(ValueError, match="erasing"):
        train_transform(64, MEAN, STD, erasing=2)


def write_folder(folder, table, count=6):
    for number in range(count):
        (folder / f"{number}.png").write_bytes(encoded_png(number))
    (folder / table[0]).write_text(table[1])
    return folder


def csv_table(count=6):
    return ("metadata.csv", "file_name,caption\n" + "".join(f'{i}.png,"dog, {i}"\n' for i in range(count)))


def test_folder_with_table(tmp_path):
    source = captioned_folder(write_folder(tmp_path, csv_table()))
    assert [sample.caption for sample in source] == [f"dog, {i}" for i in range(6)]
    assert [sample.image.getpixel((0, 0))[0] for sample in source] == list(range(6))
    (tmp_path / "metadata.csv").unlink()
    lines = "".join(f'{{"file_name": "{i}.png", "text": "cat {i}"}}\n' for i in range(6))
    source = captioned_folder(write_folder(tmp_path, ("metadata.jsonl", lines)))
    assert [sample.caption for sample in source] == [f"cat {i}" for i in range(6)]


def test_folder_takes_captions_as_they_are_and_ignores_other_columns(tmp_path):
    table = "image,file_name,caption\nhttp://0,0.png,none\nhttp://1,1.png,12\nhttp://2,2.png,\n"
    source = captioned_folder(write_folder(tmp_path, ("metadata.csv", table), count=3))
    assert source.captions() == ["none", "12"]
    assert [sample.caption for sample in source] == ["none", "12", "none"]
    assert source[1].image.getpixel((0, 0)) == (1, 1, 1)


def test_folder_without_captions_shows_the_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        captioned_folder(tmp_path / "nowhere")
    (tmp_path / "0.png").write_bytes(encoded_png(0))
    with pytest.raises(ValueError, match=r"no metadata.csv.*FOLDER/metadata.csv"):
        captioned_folder(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,label\n0.png,1\n")
    with pytest.raises(ValueError, match=r"file_name and caption.*got 'file_name', 'label'.*FOLDER"):
        captioned_folder(tmp_path)
    (tmp_path / "metadata.csv").write_text("")
    with pytest.raises(ValueError, match=r"metadata.csv.*FOLDER/metadata.csv") as error:
        captioned_folder(tmp_path)
    assert "\n" not in str(error.value)


def test_unreadable_rows_are_replaced_by_the_next(tmp_path):
    table = csv_table(6)[1] + "missing.png,a cat\n" + '0.png,""\n'
    write_folder(tmp_path, ("metadata.csv", table))
    (tmp_path / "2.png").write_bytes(b"broken")
    corrupt = CorruptImages()
    source = captioned_folder(tmp_path, corrupt)
    assert len(source) == 8
    assert [sample.caption for sample in source] == [f"dog, {i}" for i in (0, 1, 3, 3, 4, 5, 0, 0)]
    assert len(corrupt) == 3
    assert any("2.png" in name for name in corrupt.reasons)
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="none of 8"):
        captioned_folder(tmp_path)[0]
    with pytest.raises(ValueError, match=r"corrupt images.*4 of 4"):
        captioned_folder(tmp_path, CorruptImages(minimum_count=4))[0]


def test_hub_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    columns = {
        "image": [{"bytes": encoded_png(i), "path": None} for i in range(4)],
        "captions": [[f"dog {i}", f"hound {i}"] for i in range(4)],
    }
    features = datasets.Features(image=datasets.Image(), captions=datasets.List(datasets.Value("string")))
    table = datasets.Dataset.from_dict(columns, features=features)
    source = CaptionedImages(table, "table")
    assert source[SampleKey(0, 1)].caption == "dog 1"
    assert source[SampleKey(1, 1)].caption == "hound 1"  # each epoch takes the next of several captions
    assert source[3].image.getpixel((0, 0)) == (3, 3, 3)
    with pytest.raises(ValueError, match=r"column of captions.*got image.*rename"):
        CaptionedImages(table.remove_columns("captions"), "table")
    (tmp_path / "data").mkdir()
    table.to_parquet(str(tmp_path / "data" / "train.parquet"))
    source = hub_images(str(tmp_path / "data"))
    assert source[2].caption == "dog 2"
    assert source.captions() == [f"dog {i}" for i in range(4)]


def test_hub_stream_resumes_at_any_sample(tmp_path):
    for shard in range(3):
        rows = range(10 * shard, 10 * shard + 10)
        columns = {"image": [{"bytes": encoded_png(i), "path": None} for i in rows], "text": [f"dog {i}" for i in rows]}
        features = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(str(tmp_path / f"train-{shard}.parquet"), batch_size=4)
    source = hub_images(str(tmp_path), streaming=True)
    assert isinstance(source, CaptionedStream)

    def samples():
        return ImageTextStream(source, SampleMaker(transform=plain, tokenize=tokenize, num_nouns=0), block_size=3)

    whole = captions(itertools.islice(samples(), 60))
    assert sorted(whole[:30]) == sorted(whole[30:]) == sorted(f"dog {i}" for i in range(30))
    for given in (0, 1, 3, 10, 11, 29, 30, 44):
        first, second = samples(), samples()
        list(itertools.islice(first, given))
        second.load_state_dict(first.state_dict())
        assert captions(itertools.islice(second, 60 - given)) == whole[given:]


def test_stream_visits_every_row_once_an_epoch_in_changing_order(tmp_path):
    samples = captions(itertools.islice(stream(write_shards(tmp_path)), 28 * 3))
    epochs = [samples[start : start + 28] for start in (0, 28, 56)]
    rows = [f"dog {i}" for i in range(28)]
    assert all(sorted(epoch) == sorted(rows) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [rows, *epochs]}) == 4
    assert captions(itertools.islice(stream(tmp_path), 28)) == epochs[0]
    assert captions(itertools.islice(stream(tmp_path, seed=1), 28)) != epochs[0]


@pytest.mark.parametrize("given", range(0, 60, 7))
def test_stream_resumes_at_any_sample(tmp_path, given):
    whole = captions(itertools.islice(stream(write_shards(tmp_path)), 70))
    first = stream(tmp_path)
    assert captions(itertools.islice(first, given)) == whole[:given]
    second = stream(tmp_path)
    second.load_state_dict(first.state_dict())
    assert captions(itertools.islice(second, 70 - given)) == whole[given:]


@pytest.mark.parametrize("workers", [0, 2])
def test_stream_resumes_in_a_new_loader(tmp_path, workers):
    write_shards(tmp_path)

    def loader():
        return StatefulDataLoader(stream(tmp_path), batch_size=3, num_workers=workers, collate_fn=collate)

    whole = list(itertools.islice(loader(), 13))
    first = loader()
    list(itertools.islice(first, 8))
    second = loader()
    second.load_state_dict(first.state_dict())
    for one, other in zip(whole[8:], itertools.islice(second, 5), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_stream_is_divided_over_processes_and_workers(tmp_path):
    write_shards(tmp_path)
    rows = []
    for rank in range(2):
        part = stream(tmp_path, rank=rank, world_size=2)
        loader = StatefulDataLoader(part, batch_size=1, num_workers=2, collate_fn=collate)
        rows += [text_of(batch["input_ids"][0]) for batch in itertools.islice(loader, 14)]
    assert sorted(rows) == sorted(f"dog {i}" for i in range(28))


def test_too_few_shards(tmp_path):
    write_shards(tmp_path, count=3)
    with pytest.raises(
        ValueError, match=r"at least 4 shards \(4 processes x 1 workers\), got 3; lower run.num_workers"
    ):
        stream(tmp_path, rank=0, world_size=4)
    part = stream(tmp_path, rank=0, world_size=2)
    with pytest.raises(ValueError, match=r"at least 4 shards \(2 processes x 2 workers\), got 3"):
        part.check_shards(num_workers=2)
    with pytest.raises(ValueError, match="at least 4 shards"):
        next(iter(StatefulDataLoader(part, batch_size=1, num_workers=2, collate_fn=collate)))
    with pytest.raises(FileNotFoundError, match=r"none at .*\.zip"):
        shard_stream(str(tmp_path / "*.zip"))


def test_stream_skips_corrupt_images_and_stops_at_too_many(tmp_path):
    samples = stream(write_shards(tmp_path, broken=(3, 20)))
    rows = captions(itertools.islice(samples, 26))
    assert sorted(rows) == sorted(f"dog {i}" for i in range(28) if i not in (3, 20))
    assert len(samples.reader.corrupt) == 2
    with pytest.raises(ValueError, match="corrupt images"):
        next(iter(stream(write_shards(tmp_path, broken=range(28)))))
    with pytest.raises(ValueError, match="expected readable rows, got none"):
        next(iter(stream(write_shards(tmp_path, count=4, rows=2, broken=range(8)))))


def test_truncated_shard_is_counted_and_the_others_are_read(tmp_path):
    write_shards(tmp_path)
    shard = tmp_path / "002.tar"
    shard.write_bytes(shard.read_bytes()[:9000])  # within the fifth row
    samples = stream(tmp_path, block_size=2)
    rows = captions(itertools.islice(samples, 25))
    assert sorted(rows) == sorted(f"dog {i}" for i in range(28) if i not in (18, 19, 20))
    assert list(samples.reader.corrupt.reasons) == [f"shard 2 ({tmp_path})"]


def test_stream_samples_are_views_of_their_images(tmp_path):
    for sample in itertools.islice(stream(write_shards(tmp_path)), 28):
        number = int(text_of(sample["input_ids"]).split()[1])
        expected = (number / 255 - 0.5) / 0.25
        np.testing.assert_allclose(sample["pixel_values"].numpy(), expected, atol=1e-5)


def test_captions_of_tables_stay_as_they_are_written(tmp_path):
    table = 'file_name, caption\n0.png, 001\n1.png,true\n2.png,"a ball, red\nand a box"\n3.png,"a ""big"" ball"\n\n'
    source = captioned_folder(write_folder(tmp_path, ("metadata.csv", table), count=4))
    assert source.captions() == ["001", "true", "a ball, red\nand a box", 'a "big" ball']


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("metadata.csv", "file_name,caption\n0.png,a ball, a box\n", r"metadata\.csv, line 2: expected 2 columns"),
        ("metadata.csv", "file_name,caption\n0.png,a ball,\n", "put a caption with commas in quotes"),
        ("metadata.csv", "file_name,caption\n0.png\n", "expected 2 columns, got more or fewer"),
        ("metadata.csv", "file_name,caption\n", "expected at least one row, got none"),
        ("metadata.csv", "file_name;caption\n0.png;a\n", "got 'file_name;caption'"),
        ("metadata.jsonl", "[1]\n", r"metadata\.jsonl, line 1: expected an object, got list"),
        ("metadata.jsonl", "null\n", "expected an object, got NoneType"),
        ("metadata.jsonl", '\n{"file_name": "0.png"\n', r"metadata\.jsonl, line 2: expected JSON"),
        ("metadata.jsonl", '{"file_name": 5, "text": "a"}\n', "expected texts for file_name and caption"),
        ("metadata.jsonl", '{"file_name": "0.png", "text": {"a": 1}}\n', "expected texts for file_name and caption"),
        ("metadata.jsonl", '{"file_name": "0.png", "text": [["a"]]}\n', "expected texts for file_name and caption"),
        ("metadata.jsonl", '{"text": "a"}\n', r"file_name and caption.*got 'text'"),
        ("metadata.jsonl", "[" * 10**5, "nested too deeply"),
    ],
)
def test_tables_of_other_kinds_are_refused_with_the_line(tmp_path, name, text, reason):
    with pytest.raises(ValueError, match=reason) as error:
        captioned_folder(write_folder(tmp_path, (name, text), count=1))
    assert "\n" not in str(error.value)


def test_lines_may_hold_several_captions_none_or_numbers(tmp_path):
    lines = ['{"file_name": "0.png", "text": ["a ball", "a box"]}', "", '{"file_name": "1.png", "text": null}']
    lines += ['{"file_name": "2.png", "text": 12}']
    source = captioned_folder(write_folder(tmp_path, ("metadata.jsonl", "\ufeff" + "\n".join(lines)), count=3))
    assert [source[SampleKey(epoch, 0)].caption for epoch in (0, 1, 2)] == ["a ball", "a box", "a ball"]
    assert source[1].caption == "12"  # the row without caption is left out
