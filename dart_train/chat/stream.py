"""An answer as it is written, and how long it took."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import TextStreamer


class Timed(TextStreamer):
    """Prints words as they come; notes when the first token and the last one did."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.begun = time.perf_counter()
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """The prompt comes first, then each token when it is known on the host."""
        if not self.next_tokens_are_prompt:
            self.times.append(time.perf_counter() - self.begun)
        super().put(value)

    def told(self) -> str:
        if not self.times:
            return "no token was written"
        first, rest = self.times[0], self.times[-1] - self.times[0]
        rate = f", {(len(self.times) - 1) / rest:.1f} tokens/s after it" if rest > 0 else ""
        return f"first token {first:.2f} s{rate}, {len(self.times)} tokens in {self.times[-1]:.2f} s"
