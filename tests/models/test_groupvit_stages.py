"""Checkpoints with two grouping blocks in models with one or three, and the choice of what is tuned."""

import pytest
import torch

from grouping_zoo.engine.image_text import freeze_all_but
from grouping_zoo.models.groupvit_stages import adapt_stages
from grouping_zoo.models.image_text import ImageTextModel

TEXT = dict(vocab_size=20, context_length=8, width=16, depth=1, num_heads=2, eos_token_id=2)


def two_towers(depths, num_group_tokens, num_output_groups):
    torch.manual_seed(0)
    model_args = dict(
        img_size=32,
        patch_size=8,
        embed_dim=16,
        num_heads=2,
        depths=depths,
        num_group_tokens=num_group_tokens,
        num_output_groups=num_output_groups,
    )
    model = ImageTextModel("groupvit_small_patch16_224", model_args, TEXT, 8, 12)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


@pytest.fixture
def source():
    return two_towers((3, 2, 1), (6, 4, 0), (6, 4, 0)).state_dict()


def test_one_grouping_block_takes_the_blocks_in_order(source):
    target = two_towers((3, 3), (6, 0), (6, 0))
    adapted, kept = adapt_stages(source, target)
    target.load_state_dict(adapted)
    assert kept == []
    weights = target.state_dict()
    for index, name in enumerate(["0.blocks.0", "0.blocks.1", "0.blocks.2", "1.blocks.0", "1.blocks.1", "2.blocks.0"]):
        stage, block = divmod(index, 3)
        assert torch.equal(
            weights[f"vision.stages.{stage}.blocks.{block}.attn.qkv.weight"],
            source[f"vision.stages.{name}.attn.qkv.weight"],
        )
    assert torch.equal(
        weights["vision.stages.0.grouping.assignment.q_proj.weight"],
        source["vision.stages.0.grouping.assignment.q_proj.weight"],
    )


def test_a_third_grouping_block_starts_from_the_second_with_the_first_group_tokens(source):
    target = two_towers((2, 1, 2, 1), (6, 4, 2, 0), (6, 4, 2, 0))
    adapted, kept = adapt_stages(source, target)
    target.load_state_dict(adapted)
    assert kept == []
    assert torch.equal(adapted["vision.stages.2.group_tokens"], source["vision.stages.1.group_tokens"][:, :2])
    assert torch.equal(
        adapted["vision.stages.2.grouping.assignment.q_proj.weight"],
        source["vision.stages.1.grouping.assignment.q_proj.weight"],
    )


def test_what_the_checkpoint_cannot_fill_is_kept_and_named(source):
    target = two_towers((3, 2, 1), (6, 5, 0), (6, 4, 0))
    own = target.state_dict()["vision.stages.1.group_tokens"]
    adapted, kept = adapt_stages(source, target)
    assert "vision.stages.1.group_tokens" in kept
    assert torch.equal(adapted["vision.stages.1.group_tokens"], own)
    assert "vision.norm.weight" not in kept


def test_another_number_of_blocks_is_refused(source):
    with pytest.raises(ValueError, match="expected 6 transformer blocks in all, as the checkpoint has, got 5"):
        adapt_stages(source, two_towers((3, 2), (6, 0), (6, 0)))


@pytest.mark.parametrize(
    ("parts", "trained", "frozen"),
    [
        (["grouping_blocks"], "vision.stages.0.grouping.mixer.fc1.weight", "vision.stages.0.blocks.0.mlp.fc1.weight"),
        (["last_grouping_block"], "vision.stages.1.grouping.mlp.fc1.weight", "vision.stages.0.grouping.mlp.fc1.weight"),
        (["image_projector"], "image_projector.fc1.weight", "text_projector.fc1.weight"),
        (["image_projector", "text_projector"], "text_projector.fc1.weight", "logit_scale"),
        (["all"], "logit_scale", None),
    ],
)
def test_only_the_chosen_parts_are_tuned(parts, trained, frozen):
    model = two_towers((1, 1, 1), (6, 4, 0), (6, 4, 0))
    freeze_all_but(model, parts)
    assert model.get_parameter(trained).requires_grad
    assert frozen is None or not model.get_parameter(frozen).requires_grad
