"""The other side of bench/text_gpu.py: transformers and PEFT in torch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from peft import LoraConfig, get_peft_model  # pyright: ignore[reportMissingImports]
from transformers import MistralConfig, MistralModel

from bench.text_gpu_rows import (
    JOB,
    NAMES,
    OUT_OF_MEMORY,
    PROFILE,
    Found,
    Row,
    median_seconds,
    random_rows,
)
from star_jax.text.families import MistralShape


def measure(rows: dict[str, Row], shape: MistralShape, shorter: int) -> Iterator[tuple[str, Found]]:
    """Their side; texts are `shorter` times shorter."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _model(shape, device)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=device == "cuda"
    )

    def vectors(count: int, length: int) -> Any:
        tokens = torch.from_numpy(random_rows(count, length, shape).tokens).long().to(device)
        last = model(input_ids=tokens).last_hidden_state[:, -1].float()
        return torch.nn.functional.normalize(last, dim=-1)

    def train(row: Row) -> float:
        with torch.autocast(device, torch.bfloat16):
            jobs, profiles = (vectors(row.pairs, n // shorter) for n in (JOB, PROFILE))
        target = torch.arange(row.pairs, device=device)
        loss = torch.nn.functional.cross_entropy(20.0 * jobs @ profiles.T, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss)

    def export(row: Row) -> float:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            return float(vectors(row.pairs, JOB // shorter)[0, 0].isfinite())

    for key, row in rows.items():
        model.train(row.kind == "train")
        if row.remat == "full":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()
        run = train if row.kind == "train" else export
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            first = run(row)  # Chooses kernels.
            assert np.isfinite(first), row.name
            seconds = median_seconds(lambda run=run, row=row: run(row))
            peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0
            yield key, Found(seconds, first, peak, 0.0)
        except torch.OutOfMemoryError:
            yield key, OUT_OF_MEMORY


def _model(shape: MistralShape, device: str) -> Any:
    """Random weights in bfloat16, adapters in float32."""
    options: dict[str, Any] = {"attn_implementation": "sdpa"}
    config = MistralConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_width,
        intermediate_size=shape.mlp_width,
        sliding_window=None,  # Longer than any text.
        use_cache=False,
        **options,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        base: Any = MistralModel(config)
    torch.set_default_dtype(torch.float32)
    adapters = LoraConfig(r=8, lora_alpha=32, lora_dropout=0.1, target_modules=list(NAMES))
    model = get_peft_model(base, adapters)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model
