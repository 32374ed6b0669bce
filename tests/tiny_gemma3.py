"""A tiny Gemma 3 that reads film and prompt as MedGemma does and answers nonsense: half a megabyte of random weights.

The folder has the layout in which google/medgemma-4b-it is published, so that transformers and mlx-vlm load either
with the same code. `python -m tests.tiny_gemma3 OUT` writes one.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.pathologies import NAMES

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    Weights = dict[str, Tensor]

Config = dict[str, Any]

RESERVED_TOKENS = ["[multimodal]", *(f"<unused{i}>" for i in range(99))]  # text, to a decoder that skips control tokens
CONTROL_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *RESERVED_TOKENS, "<start_of_turn>", "<end_of_turn>"]
PAD, EOS, BOS, END_OF_TURN = map(CONTROL_TOKENS.index, ("<pad>", "<eos>", "<bos>", "<end_of_turn>"))  # 0, 1, 2, 106
ENDS_OF_ANSWER = [EOS, END_OF_TURN]
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
ALPHABET = [*(chr(code) for code in range(ord(" ") + 1, ord("~") + 1)), "\n", "▁"]
START_OF_IMAGE, END_OF_IMAGE, IMAGE_SOFT_TOKEN = "<start_of_image>", "<end_of_image>", "<image_soft_token>"
VOCABULARY = 896  # enough for the words of a reply to be one token each, not for all prose; image tokens come on top

# No learnt token crosses from a word to punctuation; digits and line ends stay single, as in Gemma.
LEARNT_WITHIN = r"▁?[A-Za-z_]+|▁?[^\w\s▁]+|."

WIDTH = 64  # the least that 8-bit quantisation in groups of 64 accepts; so are all multiples of it below
HIDDEN = 2 * WIDTH
LAYERS = 2  # one attends within the sliding window, one everywhere
HEADS, KEY_VALUE_HEADS, HEAD_WIDTH = 4, 2, 16

IMAGE_SIDE, PATCH_SIDE = 56, 14  # pixels
PATCHES = (IMAGE_SIDE // PATCH_SIDE) ** 2
IMAGE_LENGTH = PATCHES // 4  # soft tokens of one image, each the mean of 2 x 2 patches

MATRIX_SPREAD, VECTOR_SPREAD = 0.15, 0.05  # chosen: the next token's logits have a spread of about 1
# Gains of random layers, chosen so that greedy answers depend on film and prompt. Without them the last token is
# repeated for ever: the embeddings are the output layer too, so layers must outweigh the token that entered them, and
# attention must choose among tokens rather than average all.
LAYER_GAIN, ATTENTION_GAIN = 4.0, 1.5

CHAT_TEMPLATE = r"""
{%- macro say(content) -%}
    {%- if content is string -%}
        {{- content | trim -}}
    {%- elif content is iterable -%}
        {%- for item in content -%}
            {%- if item.type == 'image' -%}
                {{- '<start_of_image>' -}}
            {%- elif item.type == 'text' -%}
                {{- item.text | trim -}}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{- raise_exception('The content of a message is a string or a list of items') -}}
    {%- endif -%}
{%- endmacro -%}

{%- set turns = messages -%}
{%- set preface = '' -%}
{%- if messages[0].role == 'system' -%}
    {%- set turns = messages[1:] -%}
    {%- set system = messages[0].content -%}
    {%- set preface = (system if system is string else system[0].text) + '\n\n' -%}
{%- endif -%}

{{- bos_token -}}
{%- for turn in turns -%}
    {%- set users_turn = loop.index0 is even -%}
    {%- if (turn.role == 'user') != users_turn -%}
        {{- raise_exception('Roles must alternate, and the user speaks first') -}}
    {%- endif -%}
    {{- '<start_of_turn>' ~ ('model' if turn.role == 'assistant' else turn.role) ~ '\n' -}}
    {{- preface if loop.first -}}
    {{- say(turn.content) -}}
    {{- '<end_of_turn>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<start_of_turn>model\n' -}}
{%- endif -%}
"""

PROSE = """
The heart is normal in size and the lungs are clear. There is no pleural effusion and no pneumothorax.
A small effusion on the right blunts the costophrenic angle, with atelectasis of the base beside it.
The cardiac silhouette is enlarged; the vessels of the upper lobes are widened: mild pulmonary edema.
Patchy consolidation in the left lower lobe, which suggests pneumonia in a patient with fever and cough.
Both lungs are hyperinflated and the diaphragm is flat, as in emphysema. Apical pleural thickening.
A round nodule of 8 mm lies in the right upper lobe; a mass cannot be excluded on this view.
Reticular opacities at both bases are likely fibrosis. A hiatal hernia is seen behind the heart.
You are an expert radiologist. Read this frontal chest radiograph and answer in JSON.
For each pathology say whether it is present, absent, uncertain or not_mentioned, and quote your own words.
Then give your clinical reasoning, the key observations, a differential and a recommendation.
The patient reports shortness of breath, chest pain on the left, fever and a dry cough for three days.
"""
STATUSES = ("present", "absent", "uncertain", "not_mentioned")
QUOTES = ("no effusion is seen", "enlarged heart", "opacity at the left base", "clear lungs", "")


def build(folder: Path, seed: int = 7, *, sliding_window: int = 1024) -> Path:
    """Write the checkpoint, the same for the same arguments, and return its folder."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokens = tokenizer.get_vocab_size()
    rows = (tokens // 64 + 1) * 64  # as in Gemma, the last rows are no token's

    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    for name, config in {
        "config.json": _model_config(tokenizer, rows, sliding_window),
        "generation_config.json": _generation_config(),
        "tokenizer_config.json": _tokenizer_config(),
        "processor_config.json": {"image_seq_length": IMAGE_LENGTH, "processor_class": "Gemma3Processor"},
        "preprocessor_config.json": _image_config(),
    }.items():
        (folder / name).write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_file(_weights(seed, tokens, rows), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _corpus() -> Iterator[str]:
    """Yield prose about films, then replies as the second reader is asked for them."""
    yield from PROSE.strip().splitlines()
    for i, name in enumerate(NAMES):
        label = name.replace(" ", "_")
        for j, status in enumerate(STATUSES):
            quote = QUOTES[(i + j) % len(QUOTES)]
            yield json.dumps({label: {"status": status, "quote": quote}}, separators=(",", ":") if j % 2 else None)
            yield json.dumps(
                {
                    "clinical_reasoning": quote,
                    "key_observations": [quote, label],
                    "differential": [label],
                    "recommendation": quote,
                }
            )


def _tokenizer() -> "Tokenizer":
    """Learn a vocabulary from the corpus and give it Gemma's handling of spaces, bytes and control tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocabulary, merges = _learn_vocabulary()
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", BOS)]
    )
    tokenizer.add_tokens(
        [
            AddedToken(token, special=token not in RESERVED_TOKENS, normalized=False)
            for token in (*CONTROL_TOKENS, START_OF_IMAGE, END_OF_IMAGE, IMAGE_SOFT_TOKEN)
        ]
    )
    return tokenizer


def _learn_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return ids by token and the merges, most frequent first: control tokens, bytes, characters, then what is learnt.

    The learner is thrown away: it would take the bytes' names for control tokens, and so find them in any text.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(LEARNT_WITHIN), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*CONTROL_TOKENS, *BYTE_TOKENS],
        initial_alphabet=ALPHABET,
        show_progress=False,
    )
    learner.train_from_iterator(_corpus(), trainer)
    learnt = json.loads(learner.to_str())["model"]
    return learnt["vocab"], [(left, right) for left, right in learnt["merges"]]


def _tokenizer_config() -> Config:
    image_tokens = {"boi_token": START_OF_IMAGE, "eoi_token": END_OF_IMAGE, "image_token": IMAGE_SOFT_TOKEN}
    return {
        "tokenizer_class": "GemmaTokenizer",
        "processor_class": "Gemma3Processor",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        **image_tokens,
        "extra_special_tokens": image_tokens,
        "clean_up_tokenization_spaces": False,
        "spaces_between_special_tokens": False,
    }


def _image_config() -> Config:
    """How a film becomes pixels in -1..1."""
    return {
        "image_processor_type": "Gemma3ImageProcessor",
        "processor_class": "Gemma3Processor",
        "image_seq_length": IMAGE_LENGTH,
        "do_resize": True,
        "size": {"height": IMAGE_SIDE, "width": IMAGE_SIDE},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_convert_rgb": None,
        "do_pan_and_scan": None,
    }


def _generation_config() -> Config:
    """Sampling by default, as published: who wants the likeliest answer must say so."""
    return {
        "bos_token_id": BOS,
        "eos_token_id": ENDS_OF_ANSWER,
        "pad_token_id": PAD,
        "cache_implementation": "hybrid",
        "do_sample": True,
        "top_k": 64,
        "top_p": 0.95,
    }


def _model_config(tokenizer: "Tokenizer", rows: int, sliding_window: int) -> Config:
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "bos_token_id": BOS,
        "eos_token_id": ENDS_OF_ANSWER,
        "pad_token_id": PAD,
        "boi_token_index": tokenizer.token_to_id(START_OF_IMAGE),
        "eoi_token_index": tokenizer.token_to_id(END_OF_IMAGE),
        "image_token_index": tokenizer.token_to_id(IMAGE_SOFT_TOKEN),
        "mm_tokens_per_image": IMAGE_LENGTH,
        "torch_dtype": "bfloat16",
        "text_config": {
            "model_type": "gemma3_text",
            "vocab_size": rows,
            "hidden_size": WIDTH,
            "intermediate_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KEY_VALUE_HEADS,
            "head_dim": HEAD_WIDTH,
            "query_pre_attn_scalar": HEAD_WIDTH,
            "hidden_activation": "gelu_pytorch_tanh",
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000,
            "rope_local_base_freq": 10_000,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window": sliding_window,
            "sliding_window_pattern": LAYERS,
            "max_position_embeddings": 131_072,
            "mm_tokens_per_image": IMAGE_LENGTH,  # mlx-vlm looks for it here
            "torch_dtype": "bfloat16",
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": WIDTH,
            "intermediate_size": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_channels": 3,
            "image_size": IMAGE_SIDE,
            "patch_size": PATCH_SIDE,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "vision_use_head": False,
            "torch_dtype": "bfloat16",
        },
    }


class _Dice:
    """Draws tensors in one seeded order, away from torch's global state."""

    def __init__(self, seed: int) -> None:
        import torch

        self._torch = torch
        self._generator = torch.Generator().manual_seed(seed)

    def matrix(self, *shape: int) -> "Tensor":
        return self._normal(shape, 0.0, MATRIX_SPREAD)

    def vector(self, length: int, around: float = 0.0) -> "Tensor":
        return self._normal((length,), around, VECTOR_SPREAD)

    def _normal(self, shape: tuple[int, ...], mean: float, spread: float) -> "Tensor":
        drawn = self._torch.randn(shape, generator=self._generator)
        return (mean + spread * drawn).to(self._torch.bfloat16)


def _weights(seed: int, tokens: int, rows: int) -> "Weights":
    """Return the tensors by their published names; there is no output layer, the token embeddings serve as it."""
    dice = _Dice(seed)
    return {
        **_language_weights(dice, "language_model.model", tokens, rows),
        **_vision_weights(dice, "vision_tower.vision_model"),
        "multi_modal_projector.mm_input_projection_weight": dice.matrix(WIDTH, WIDTH),
        "multi_modal_projector.mm_soft_emb_norm.weight": dice.vector(WIDTH),
    }


def _language_weights(dice: _Dice, prefix: str, tokens: int, rows: int) -> "Weights":
    """The decoder; Gemma stores the scale of a norm as its distance from 1."""
    embeddings = dice.matrix(rows, WIDTH)
    embeddings[tokens:] = 0  # never the likeliest, so that no decoder meets an id without a token
    weights = {f"{prefix}.embed_tokens.weight": embeddings}
    query, key = HEADS * HEAD_WIDTH, KEY_VALUE_HEADS * HEAD_WIDTH
    for i in range(LAYERS):
        layer = f"{prefix}.layers.{i}"
        weights |= {
            f"{layer}.input_layernorm.weight": dice.vector(WIDTH),
            f"{layer}.self_attn.q_proj.weight": dice.matrix(query, WIDTH),
            f"{layer}.self_attn.k_proj.weight": dice.matrix(key, WIDTH),
            f"{layer}.self_attn.v_proj.weight": dice.matrix(key, WIDTH),
            f"{layer}.self_attn.o_proj.weight": dice.matrix(WIDTH, query),
            f"{layer}.self_attn.q_norm.weight": dice.vector(HEAD_WIDTH, around=ATTENTION_GAIN - 1),
            f"{layer}.self_attn.k_norm.weight": dice.vector(HEAD_WIDTH, around=ATTENTION_GAIN - 1),
            f"{layer}.post_attention_layernorm.weight": dice.vector(WIDTH, around=LAYER_GAIN - 1),
            f"{layer}.pre_feedforward_layernorm.weight": dice.vector(WIDTH),
            f"{layer}.mlp.gate_proj.weight": dice.matrix(HIDDEN, WIDTH),
            f"{layer}.mlp.up_proj.weight": dice.matrix(HIDDEN, WIDTH),
            f"{layer}.mlp.down_proj.weight": dice.matrix(WIDTH, HIDDEN),
            f"{layer}.post_feedforward_layernorm.weight": dice.vector(WIDTH, around=LAYER_GAIN - 1),
        }
    return weights | {f"{prefix}.norm.weight": dice.vector(WIDTH)}


def _vision_weights(dice: _Dice, prefix: str) -> "Weights":
    """The SigLIP encoder, whose layers all have biases."""
    weights = {
        f"{prefix}.embeddings.patch_embedding.weight": dice.matrix(WIDTH, 3, PATCH_SIDE, PATCH_SIDE),
        f"{prefix}.embeddings.patch_embedding.bias": dice.vector(WIDTH),
        f"{prefix}.embeddings.position_embedding.weight": dice.matrix(PATCHES, WIDTH),
    }
    for i in range(LAYERS):
        layer = f"{prefix}.encoder.layers.{i}"
        weights |= {
            **_layer_norm(dice, f"{layer}.layer_norm1"),
            **_linear(dice, f"{layer}.self_attn.q_proj", WIDTH, WIDTH),
            **_linear(dice, f"{layer}.self_attn.k_proj", WIDTH, WIDTH),
            **_linear(dice, f"{layer}.self_attn.v_proj", WIDTH, WIDTH),
            **_linear(dice, f"{layer}.self_attn.out_proj", WIDTH, WIDTH),
            **_layer_norm(dice, f"{layer}.layer_norm2"),
            **_linear(dice, f"{layer}.mlp.fc1", HIDDEN, WIDTH),
            **_linear(dice, f"{layer}.mlp.fc2", WIDTH, HIDDEN),
        }
    return weights | _layer_norm(dice, f"{prefix}.post_layernorm")


def _linear(dice: _Dice, name: str, outputs: int, inputs: int) -> "Weights":
    return {f"{name}.weight": dice.matrix(outputs, inputs), f"{name}.bias": dice.vector(outputs)}


def _layer_norm(dice: _Dice, name: str) -> "Weights":
    return {f"{name}.weight": dice.vector(WIDTH, around=1.0), f"{name}.bias": dice.vector(WIDTH)}


if __name__ == "__main__":
    sys.stdout.write(f"{build(Path(sys.argv[1]))}\n")
