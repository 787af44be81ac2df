"""pfl-research's side of `benchmarks/peers.py`, in an environment of its own: federated averaging.

    python peers_pfl.py JOB.json

The job names the arrays of the clients, the network with its first weights, and the protocol. What
is printed is one JSON line: wall and processor seconds of every round but the first, and the mean
loss of the last model over all training rows. pfl evaluates in the first round alone.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

NETWORKS = Path(__file__).resolve().parents[1] / "fedprune" / "tasks" / "networks.py"


class Learner(nn.Module):
    """What pfl wants of a model: a loss of a batch, and metrics."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy of a batch."""
        return nn.functional.cross_entropy(self.net(images), labels)

    def metrics(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        """Asked for in the first round alone, which does not count."""
        del images
        return {"rows": Weighted(0.0, len(labels))}


class Clock(TrainingProcessCallback):
    """Notes when every round ended."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Note the time; do not stop."""
        del aggregate_metrics, model, central_iteration
        self.ends.append((time.perf_counter(), time.process_time()))
        return False, Metrics()


def network(job: dict[str, Any]) -> nn.Module:
    """The same class as on the other side, from its file, with the same first weights."""
    spec = importlib.util.spec_from_file_location("networks", NETWORKS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net: nn.Module = getattr(module, job["network"])(**job["arguments"])
    net.load_state_dict(torch.load(job["weights"]))
    return net.train()


def main() -> None:
    """Play a job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    arrays, n = np.load(job["arrays"]), job["clients"]
    rows = [[torch.from_numpy(arrays[f"{name}{i}"]) for name in ("x", "y")] for i in range(n)]
    users = [Dataset(row, user_id=str(i)) for i, row in enumerate(rows)]
    data = FederatedDataset(users.__getitem__, get_user_sampler("random", list(range(n))))
    learner = Learner(network(job))
    clock = Clock()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=job["rounds"],
            evaluation_frequency=10**9,
            train_cohort_size=job["cohort"],
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=data, val_data=data),
        model=PyTorchModel(learner, torch.optim.SGD, torch.optim.SGD(learner.parameters(), lr=1.0)),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=job["epochs"] or None,
            local_num_steps=None if job["epochs"] else job["steps"],
            local_learning_rate=job["lr"],
            local_batch_size=job["batch"],
        ),
        callbacks=[clock],
        send_metrics_to_platform=False,
    )
    with torch.no_grad():
        images, labels = (torch.cat(column) for column in zip(*rows, strict=True))
        loss = float(learner.loss(images, labels))
    print(json.dumps({"ends": clock.ends, "loss": loss}))


if __name__ == "__main__":
    main()
