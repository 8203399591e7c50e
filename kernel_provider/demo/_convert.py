"""Runs in a one-off container: a GGUF model in /in becomes a bf16 model in /out.

Usage: ``python _convert.py FILE.gguf``. The copied weights are what makes it savable: a
model that came from GGUF is marked as quantized, and those can't be saved.
"""

import resource
import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(gguf: str) -> None:
    """Read, copy into a plain model of the same shape, save with the tokenizer."""
    begun = time.monotonic()
    loaded = AutoModelForCausalLM.from_pretrained("/in", gguf_file=gguf, dtype=torch.bfloat16)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    plain.save_pretrained("/out")
    AutoTokenizer.from_pretrained("/in", gguf_file=gguf).save_pretrained("/out")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    took = time.monotonic() - begun
    sys.stdout.write(f"{plain.num_parameters():,} parameters, {took:.0f} s, {peak} MB\n")


if __name__ == "__main__":
    main(sys.argv[1])
