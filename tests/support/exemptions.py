"""The exemptions from the conformance suite: what an architecture does not promise, each with its reason."""

# (test, beginning of the case's name) -> reason.
EXEMPTIONS: dict[tuple[str, str], str] = {
    ("test_a_model_created_without_pooling_gives_its_features", "vt_fpn"): "predicts pixels: there is no pooling",
    ("test_a_model_created_without_pooling_gives_its_features", "semantic_fpn"): "as vt_fpn",
    ("test_norm_is_applied_to_tokens_when_asked_for", "vt_"): "its stages are maps, which no norm follows",
    ("test_norm_is_applied_to_tokens_when_asked_for", "semantic_fpn"): "as vt_fpn",
    ("test_stopping_early_leaves_the_later_stages_out", "groupvit_nano"): "its second stage has no blocks",
    ("test_stopping_early_leaves_the_later_stages_out", "vt_fpn"): "every level of a pyramid depends on all",
    ("test_stopping_early_leaves_the_later_stages_out", "semantic_fpn"): "as vt_fpn",
    ("test_features_only_keeps_no_part_that_it_does_not_need", "groupvit"): "the last stage's grouping stays",
    ("test_features_only_keeps_no_part_that_it_does_not_need", "vt_fpn"): "the other levels' outputs stay",
    ("test_features_only_keeps_no_part_that_it_does_not_need", "semantic_fpn"): "as vt_fpn",
    ("test_stages_of_the_feature_info_are_modules", "vt_fpn"): "several modules make a level of a pyramid",
    ("test_stages_of_the_feature_info_are_modules", "semantic_fpn"): "as vt_fpn",
    ("test_gradients_reach_every_parameter_that_is_not_frozen", "pgt"): "its last layer refines tokens for dense tasks",
    (
        "test_drop_path_acts_in_training_alone_and_rises_to_its_rate",
        "vt_resnet34",
    ): "nothing to drop in its last module",
    ("test_drop_path_acts_in_training_alone_and_rises_to_its_rate", "vt_fpn"): "set by the backbone's arguments",
    ("test_drop_path_acts_in_training_alone_and_rises_to_its_rate", "semantic_fpn"): "as vt_fpn",
    ("test_another_img_size_resizes_the_position_embedding", "vt_"): "has no position embedding",
    ("test_another_img_size_resizes_the_position_embedding", "semantic_fpn"): "as vt_fpn",
    ("test_an_image_of_another_size_equals_a_model_of_that_size", "vt_"): "has no position embedding",
    ("test_an_image_of_another_size_equals_a_model_of_that_size", "semantic_fpn"): "as vt_fpn",
    ("test_an_image_of_another_size_equals_a_model_of_that_size", "cast_seg"): "gives positions to pixels, not cells",
    ("test_every_pixel_of_a_padded_image_has_the_token_of_its_own_patch", "cast"): "its tokens are superpixels",
    ("test_every_pixel_of_a_padded_image_has_the_token_of_its_own_patch", "vt_"): "its tokens are cells of a map",
}
