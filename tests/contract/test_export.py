"""Exported programs compute what the network computes, for any batch size, and at every call the same."""

import pytest
import timm
import torch
from torch.utils import _pytree as pytree
from transformers import AutoModel

import grouping_zoo
from grouping_zoo import Grouping
from zoo import with_random_weights

NETWORKS = ["groupvit_nano_patch4_64", "pgt_nano", "vt_resnet_nano", "vt_fpn_nano", "semantic_fpn_nano"]


def images(batch_size: int) -> torch.Tensor:
    return torch.randn(batch_size, 3, 64, 64, generator=torch.Generator().manual_seed(batch_size))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_program_with_dynamic_batch_equals_the_network(name: str) -> None:
    torch.manual_seed(0)
    network = with_random_weights(timm.create_model(name).eval())
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    with torch.no_grad():
        program = torch.export.export(network, (images(3),), dynamic_shapes=(batch,), strict=False).module()
        for batch_size in (3, 1, 5, 3):
            torch.testing.assert_close(program(images(batch_size)), network(images(batch_size)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["groupvit_nano_scenes", "pgt_nano_photos", "vt_resnet_nano_scenes"])
def test_a_transformers_class_is_exported_with_its_grouping(name: str) -> None:
    model = AutoModel.from_pretrained(grouping_zoo.packaged_checkpoints()[name]).eval()
    with torch.no_grad():
        program = torch.export.export(model, (), {"pixel_values": images(2)}, strict=False).module()
        found, expected = program(pixel_values=images(2)), model(pixel_values=images(2))
    assert isinstance(found.grouping, Grouping)
    assert torch.equal(found.grouping.labels(-1), expected.grouping.labels(-1))


def test_a_grouping_is_a_tree_of_its_tensors() -> None:
    assignment = torch.rand(2, 1, 4, 3).softmax(dim=-1)
    grouping = Grouping(assignments=[assignment], tokens=[torch.rand(2, 3, 5)], grid=(2, 2), extent=(0.5, 1.0))
    leaves, structure = pytree.tree_flatten(grouping)
    assert len(leaves) == 2
    again = pytree.tree_unflatten(leaves, structure)
    assert torch.equal(again.compose(), grouping.compose())
    assert (again.grid, again.extent) == (grouping.grid, grouping.extent)
    names = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(grouping)[0]]
    assert names == [".assignments[0]", ".tokens[0]"]
    doubled = pytree.tree_map(lambda tensor: tensor * 2, grouping)
    assert torch.equal(doubled.tokens[0], grouping.tokens[0] * 2)
