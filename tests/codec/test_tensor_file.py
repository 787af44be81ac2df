import torch
from safetensors.torch import load, save

from fedprune.codec.tensor_file import tensor_file

TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def test_the_pieces_are_the_bytes_that_safetensors_writes():
    shared = torch.arange(6.0)
    tensors = {f"b/{t}": torch.arange(5).to(t) for t in TYPES + WHOLE}
    tensors |= {"é": shared[:4].view(2, 2), "a": shared[4:], "none": torch.empty(0, 3)}
    tensors |= {"turned": torch.arange(6.0).view(2, 3).t(), "flag": torch.tensor(True)}
    data = b"".join(tensor_file(tensors, {"said": "as it is: \u00e9"}))
    own = {n: t.contiguous().clone() for n, t in tensors.items()}
    assert data == save(own, {"said": "as it is: \u00e9"})
    assert all(torch.equal(t, tensors[n]) for n, t in load(data).items())
