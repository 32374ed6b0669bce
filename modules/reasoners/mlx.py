"""MedGemma on Apple Silicon by mlx-vlm; imported in a process of its own (`worker.py`).

Stock mlx-vlm 0.7 computes Gemma 3 differently from transformers in three ways. Each is set right here, only where it is
wrong: the scale of the image's features, a second <bos>, and the attention inside the image.
"""

import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from modules.reasoners.decoding import Logits

DEFAULT_MODEL = "mlx-community/medgemma-4b-it-8bit"
Dtype = Literal["auto", "bfloat16", "float32"]
Mask = npt.NDArray[np.bool_]


@dataclass
class MlxStack:
    """A Gemma 3 vision-language model and its cache."""

    model: Any
    processor: Any
    description: str
    _cache: Any = None

    @classmethod
    def load(cls, name: str, *, dtype: Dtype = "auto") -> "MlxStack":
        """Load from a folder or from the local cache; "auto" keeps the type in which the weights were saved."""
        import mlx.core as mx
        from mlx_vlm import load

        model, processor = load(name, trust_remote_code=False)
        if dtype != "auto":
            model.set_dtype(getattr(mx, dtype))
        guards = ["image scale"] if set_image_scale(model) else []
        kind = str(model.language_model.model.norm.weight.dtype).removeprefix("mlx.core.")
        note = f", {', '.join(guards)} corrected" if guards else ""
        return cls(model, processor, f"mlx on {mx.default_device().type.name}, {kind}{note}")

    @property
    def tokenizer(self) -> Any:
        """The model's fast tokenizer."""
        tokenizer = self.processor.tokenizer
        return getattr(tokenizer, "_tokenizer", tokenizer) if not hasattr(tokenizer, "backend_tokenizer") else tokenizer

    def render(self, messages: list[dict[str, Any]]) -> str:
        """Return a conversation as the chat template writes it."""
        template = getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template
        text: str = self.tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=False
        )
        return text

    def start(self, prompt: str, film_png: bytes) -> Logits:
        """Empty the cache and read a prompt with its film."""
        import mlx.core as mx
        from PIL import Image

        film = Image.open(io.BytesIO(film_png)).convert("RGB")
        # the template has written <bos> already: without this the processor would write a second one
        inputs = self.processor(text=[prompt], images=[[film]], add_special_tokens=False, return_tensors="np")
        ids = np.asarray(inputs["input_ids"])
        embedded = self.model.get_input_embeddings(
            mx.array(ids), mx.array(np.asarray(inputs["pixel_values"])), mask=mx.ones(ids.shape, mx.int32)
        ).inputs_embeds
        self._cache = self.model.language_model.make_cache()
        is_image = ids[0] == self.model.config.image_token_index
        # Up to the end of the image with a mask of our own, which holds while the window does not slide; the words
        # after it need no other than the model's own.
        end = int(np.flatnonzero(is_image)[-1]) + 1
        if end > self.model.config.text_config.sliding_window:
            raise ValueError(f"the image ends after {end} tokens, beyond the model's sliding window")
        mask = mx.array(image_mask(is_image[:end]))[None, None]
        self.model.language_model(mx.array(ids[:, :end]), inputs_embeds=embedded[:, :end], mask=mask, cache=self._cache)
        mx.eval([layer.state for layer in self._cache])
        return self._logits(mx.array(ids[:, end:]), inputs_embeds=embedded[:, end:])

    def feed(self, ids: list[int]) -> Logits:
        """Read further tokens."""
        import mlx.core as mx

        return self._logits(mx.array([ids]))

    def _logits(self, ids: Any, **inputs: Any) -> Logits:
        import mlx.core as mx

        logits = self.model.language_model(ids, cache=self._cache, **inputs).logits[0, -1]
        return np.asarray(np.array(logits.astype(mx.float32)), np.float32)


def set_image_scale(model: Any) -> bool:
    """Let the image's features be divided by the root of the text model's width; return whether that was needed.

    mlx-vlm reads `hidden_size` from the top of the configuration, where Gemma 3 has none and a default stands.
    """
    width = model.config.text_config.hidden_size
    needed = bool(model.config.hidden_size != width)
    model.config.hidden_size = width
    return needed


def image_mask(is_image: Mask) -> Mask:
    """Return who attends to whom (L, L): each token to those before it, and inside an image in both directions."""
    length = len(is_image)
    starts = np.diff(is_image.astype(int), prepend=0) == 1
    block = np.cumsum(starts) * is_image  # 0 for text
    together = (block[:, None] == block[None, :]) & is_image[:, None]
    return np.asarray(np.tril(np.ones((length, length), bool)) | together)
