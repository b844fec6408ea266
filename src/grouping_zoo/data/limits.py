"""Bounds on what a file may make this package allocate, checked before anything of that size exists.

`docs/limits.md` states them for users.
"""

MAX_DECODING_BYTES = 2 * 10**9
"""Memory that the decoder of one image may need, by the image's claimed size; see `DECODER_BYTES`."""

DECODER_BYTES = {"AVIF": 16, "JPEG2000": 24, "WEBP": 16}
"""Bytes a pixel that the decoders of these formats need at their peak."""
OTHER_DECODER_BYTES = 10  # a progressive JPEG's coefficients, and the decoded image beside them

MAX_PIXELS = 100_000_000
"""Larger images are scaled down to so many pixels, larger masks are refused."""

MAX_FILE_BYTES = 256 * 2**20
"""Largest image in a table, a shard, or at an address."""

MAX_TABLE_BYTES = 2**30
"""Largest table of captions."""

MAX_ANNOTATION_BYTES = 2**31
"""Largest file of annotations in COCO's format; that of COCO's training images has 470 MB."""

MAX_CAPTION_LENGTH = 10_000
"""Longest caption in characters."""

MAX_CLASSES = 100_000
"""Largest number of classes of a table whose labels are numbers without names."""
