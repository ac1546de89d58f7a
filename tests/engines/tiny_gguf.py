"""A llama of 0.2 million random weights as a GGUF file, so that a real llama.cpp server runs without any download.

`python -m tests.engines.tiny_gguf FILE`. Needs the packages gguf and numpy. It talks nonsense, in real frames.
"""

import sys
from pathlib import Path

SEED = 7
LAYERS, WIDTH, HEADS, HIDDEN, CONTEXT = 2, 64, 4, 128, 4096
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "


def vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types of a byte-level vocabulary with some words: text goes in and comes out."""
    words = ["▁the", "▁a", "▁fair", "▁turn", "▁slot", "▁waits", "▁for", "▁model", "▁and", "▁queue", ".", "▁"]
    letters = [chr(c) for c in range(97, 123)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *words, *letters]
    types = [2, 3, 3, *([6] * 256), *([1] * (len(words) + len(letters)))]
    return tokens, [-float(n) for n in range(len(tokens))], types


def write(path: Path) -> None:
    """Write the model."""
    import gguf
    import numpy

    tokens, scores, types = vocabulary()
    random = numpy.random.default_rng(SEED)
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_name("tiny-random")
    out.add_context_length(CONTEXT)
    out.add_embedding_length(WIDTH)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(HIDDEN)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS)
    out.add_rope_dimension_count(WIDTH // HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_file_type(gguf.LlamaFileType.ALL_F32)
    out.add_vocab_size(len(tokens))
    out.add_tokenizer_model("llama")
    out.add_token_list(tokens)
    out.add_token_scores(scores)
    out.add_token_types(types)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    out.add_chat_template(CHAT)
    for name, *shape in shapes(len(tokens)):
        weights = numpy.ones(shape) if "norm" in name else random.normal(0.0, 0.4, shape)
        out.add_tensor(name, weights.astype(numpy.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def shapes(vocabulary_size: int) -> list[tuple]:  # type: ignore[type-arg]  # (name, rows, columns) or (name, size)
    """Name and shape of every tensor, rows first."""
    rows: list[tuple] = [  # type: ignore[type-arg]  # as above
        ("token_embd.weight", vocabulary_size, WIDTH),
        ("output_norm.weight", WIDTH),
        ("output.weight", vocabulary_size, WIDTH),
    ]
    for n in range(LAYERS):
        rows += [(f"blk.{n}.{part}_norm.weight", WIDTH) for part in ("attn", "ffn")]
        rows += [(f"blk.{n}.attn_{part}.weight", WIDTH, WIDTH) for part in ("q", "k", "v", "output")]
        rows += [(f"blk.{n}.ffn_{part}.weight", HIDDEN, WIDTH) for part in ("gate", "up")]
        rows.append((f"blk.{n}.ffn_down.weight", WIDTH, HIDDEN))
    return rows


if __name__ == "__main__":
    write(Path(sys.argv[1]))
