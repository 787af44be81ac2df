"""llama.cpp itself, in a process of its own: what it says to ids, and how it cuts a text."""

import json
import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import json, os, sys, urllib.request
import xllamacpp as x

path, ids, words, text = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
given = x.CommonParams()
given.model.path = path
given.n_ctx, given.cpuparams.n_threads, given.warmup, given.verbosity = 64, 1, False, 0
given.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
given.cache_type_k = given.cache_type_v = x.ggml_type.GGML_TYPE_F32
server = x.Server(given)

def asked(what, body):
    kind = {"Content-Type": "application/json"}
    question = urllib.request.Request(
        server.listening_address + what, json.dumps(body).encode(), kind
    )
    return json.load(urllib.request.urlopen(question, timeout=30))

options = {"n_predict": 1, "n_probs": words, "temperature": 0.0, "cache_prompt": False}
said = asked("/completion", {"prompt": ids, **options}).get("completion_probabilities")
tops = said[0]["top_logprobs"] if said else []  # none, where it ended at once
found = {t["id"]: t["logprob"] for t in tops}
print(json.dumps([[found[i] for i in sorted(found)], asked("/tokenize", {"content": text})]))
sys.stdout.flush()
os._exit(0)
"""


def run_by_llama_cpp(
    path: Path, ids: list[int], words: int, text: str
) -> tuple[list[float], list[int]]:
    """Log-probabilities of the token after the ids, and the ids of a text."""
    command = [sys.executable, "-c", _PROGRAM, str(path), json.dumps(ids), str(words), text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    said, cut = json.loads(done.stdout)
    return said, cut["tokens"]
