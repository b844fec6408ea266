"""A GroupViT with text in a tiny size, and captions for its tokenizer."""

from grouping_zoo import ZooGroupViTConfig

CAPTIONS = ["a photo of a cat", "a coffee cup on a table", "the handwritten digit seven", "a rocket, in the sky"]


def tiny_config(**kwargs: object) -> ZooGroupViTConfig:
    """Two towers that fit the tokenizer of `checkpoint_folder`."""
    settings = dict(
        architecture="groupvit_nano_patch4_64",
        model_args=dict(
            img_size=32,
            embed_dim=32,
            num_heads=2,
            depths=(1, 1, 1),
            num_group_tokens=(6, 4, 0),
            num_output_groups=(6, 4, 0),
        ),
        text_args=dict(vocab_size=300, context_length=16, width=16, depth=2, num_heads=2, eos_token_id=2),
        projection_dim=12,
        projection_hidden_dim=24,
    )
    return ZooGroupViTConfig(**{**settings, **kwargs})
