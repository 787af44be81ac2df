"""The forms that a model can be exported in, and the precisions, in words."""

from __future__ import annotations

EXPORT_SUMMARIES = {
    "safetensors": "tensors and a manifest; fedprune.load rebuilds any shape",
    "sparse": "one file of mask and kept values; fedprune.load reads it",
    "hf": "a folder for from_pretrained, where a plain config says the shape",
    "gguf": "a file for llama.cpp, uneven cuts too (extra: llm)",
    "vllm": "a folder for vLLM (DeciLMForCausalLM), uneven cuts too",
    "onnx": "a graph for onnxruntime (extra: onnx)",
}

PRECISIONS = {
    "int8-dynamic": "8-bit weights, a scale per output, and inputs quantised at every pass: faster",
    "int8": "8-bit weights, a scale per group, restored at every pass",
    "int4": "4-bit weights, a scale per group, restored at every pass",
}

ROUNDING = "rounding"
QUANTISED_BY = {
    ROUNDING: "to the nearest code; needs no data",
    "gptq": "column by column, the rest of a row makes up (of a run with --quantise-by gptq)",
    "awq": "inputs that are large get finer steps (of a run with --quantise-by awq)",
}
"""What codes of a group are chosen by."""

GGUF_SUMMARIES = {
    "f32": "32 bits",
    "f16": "16 bits",
    "bf16": "16 bits, as bfloat16",
    "q8_0": "8 bits, a scale for every 32",
}
"""Types of the matrices in a GGUF file."""
