"""MedGemma on CUDA or the CPU by Hugging Face transformers; imported in a process of its own (`worker.py`).

In a notebook, `TransformersStack.load("google/medgemma-4b-it", quantization="4bit")` fits one T4: no bfloat16 there and
no room for float32, so the weights are held in 4 bits and computed with in float32.
"""

import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from modules.reasoners.decoding import Logits

DEFAULT_MODEL = "google/medgemma-4b-it"
Dtype = Literal["auto", "bfloat16", "float32"]
Quantization = Literal["none", "4bit"]


@dataclass
class TransformersStack:
    """A Gemma 3 vision-language model and its cache."""

    model: Any
    processor: Any
    description: str
    _cache: Any = None

    @classmethod
    def load(
        cls, name: str, *, dtype: Dtype = "auto", quantization: Quantization = "none", device: str = "auto"
    ) -> "TransformersStack":
        """Load from a folder or from the local cache; never float16, with which Gemma 3 overflows."""
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto":
            has_bfloat16 = device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
            dtype = "bfloat16" if has_bfloat16 else "float32"
        options: dict[str, Any] = {"dtype": getattr(torch, dtype), "device_map": device, "local_files_only": True}
        options |= {"use_safetensors": True, "trust_remote_code": False}  # weights are data: no pickle, no code
        if quantization == "4bit":
            from transformers import BitsAndBytesConfig

            options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, dtype)
            )
        # the PIL image processor is the one that mlx-vlm uses; torchvision's differs by up to 0.008 a pixel
        processor = AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            name, backend="pil", local_files_only=True, trust_remote_code=False
        )
        model = AutoModelForImageTextToText.from_pretrained(name, **options)
        model.eval()  # type: ignore[no-untyped-call]
        weights = "4-bit weights, " if quantization == "4bit" else ""
        return cls(model, processor, f"transformers on {device}, {weights}{dtype}")

    @property
    def tokenizer(self) -> Any:
        """The model's fast tokenizer."""
        return self.processor.tokenizer

    def render(self, messages: list[dict[str, Any]]) -> str:
        """Return a conversation as the chat template writes it."""
        text: str = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return text

    def start(self, prompt: str, film_png: bytes) -> Logits:
        """Empty the cache and read a prompt with its film."""
        import torch
        from PIL import Image
        from transformers import DynamicCache

        film = Image.open(io.BytesIO(film_png)).convert("RGB")
        # the template has written <bos> already
        inputs = self.processor(text=[prompt], images=[[film]], add_special_tokens=False, return_tensors="pt")
        self._cache = DynamicCache(config=self.model.config.get_text_config())
        inputs = inputs.to(self.model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        with torch.inference_mode():
            return self._logits(**inputs)

    def feed(self, ids: list[int]) -> Logits:
        """Read further tokens."""
        import torch

        with torch.inference_mode():
            return self._logits(input_ids=torch.tensor([ids], device=self.model.device))

    def _logits(self, **inputs: Any) -> Logits:
        output = self.model(**inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        return np.asarray(output.logits[0, -1].float().cpu().numpy(), np.float32)
