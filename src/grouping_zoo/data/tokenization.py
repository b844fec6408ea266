"""Text to token ids: CLIP's byte-pair vocabulary from an installed package, or a small one trained on captions."""

import functools
import gzip
import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import CLIPTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

START, END, PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"
CLIP_VOCABULARY_SIZE = 49408


def train_tokenizer(texts: Iterable[str], vocab_size: int = 512, context_length: int = 32) -> PreTrainedTokenizerFast:
    """Trains a byte-level byte-pair vocabulary, so that no word is unknown.

    Args:
        texts: captions, lower-cased for the training as later for the use.
        vocab_size: at most this many entries, the 256 bytes and 3 special tokens included.
        context_length: longest text in tokens, start and end included.

    Returns:
        a tokenizer that puts every text between a start and an end token.

    Raises:
        ValueError: if `vocab_size` cannot hold the bytes and special tokens.
    """
    specials = [PAD, START, END]
    smallest = 256 + len(specials)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size: expected at least {smallest} (256 bytes and 3 special tokens), got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    ids = {token: tokenizer.token_to_id(token) for token in specials}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, ids[START]), (END, ids[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        model_max_length=context_length,
        model_input_names=["input_ids", "attention_mask"],
    )


def clip_tokenizer(context_length: int = 77) -> CLIPTokenizer:
    """CLIP's tokenizer (49408 entries), from the vocabulary that open_clip_torch ships.

    Raises:
        ModuleNotFoundError: if open_clip_torch is not installed, with the command that installs it.
    """
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "CLIP's vocabulary ships with open_clip_torch, which is not installed: pip install 'grouping-zoo[clip]'"
        )
    lines = gzip.decompress((Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode()
    # The file lists merges after a header line; CLIP uses as many as fill its vocabulary beside the bytes, the bytes
    # that end a word and the two special tokens.
    num_merges = CLIP_VOCABULARY_SIZE - 2 * 256 - 2
    # Pairs, which the class takes whatever its annotation says.
    merges: Any = [tuple(line.split()) for line in lines.split("\n")[1 : num_merges + 1]]
    symbols = _clip_byte_symbols()
    tokens = [*symbols, *(f"{s}</w>" for s in symbols), *("".join(pair) for pair in merges), START, END]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=merges, model_max_length=context_length
    )


def make_tokenize(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], Tensor]:
    """Return a function from n texts to ids (n, T) int64, T the tokenizer's context length; long texts are cut.

    It can be pickled, as loader workers of some start methods need it.
    """
    return functools.partial(_tokenize, tokenizer)


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
    encoded = tokenizer(
        texts,
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
        return_attention_mask=False,
    )
    return encoded["input_ids"].to(torch.int64)


def _clip_byte_symbols() -> list[str]:
    """A printable character for each byte, in CLIP's order: printable bytes first, then the others from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
