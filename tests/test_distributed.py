"""Two real processes over Gloo give the sums that one process computes."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from recurra import distributed

PROGRAM = """
import json
import torch
from recurra import distributed

rank = distributed.rank()
device = distributed.choose_device("cpu")
assert distributed.world_size() == 2
with distributed.process_group(device):
    nats = torch.tensor([1.5, 2.0], dtype=torch.float64) * (rank + 1)
    total = distributed.sum_over_ranks(nats)

    shapes = [(2, 3), (4,), (), (5,), (2,)]
    dtypes = [torch.float32, torch.float64, torch.float32, torch.float32, torch.float64]
    parameters = [torch.nn.Parameter(torch.zeros(s, dtype=d)) for s, d in zip(shapes, dtypes)]
    for number, parameter in enumerate(parameters[:3]):
        parameter.grad = torch.full_like(parameter, 10.0 ** rank * (number + 1))
    parameters[0].grad = parameters[0].grad.T.contiguous().T  # any strides
    if rank == 1:
        parameters[4].grad = torch.tensor([7.0, 8.0], dtype=torch.float64)
    distributed.sum_gradients(parameters)
    distributed.barrier()

    state = torch.arange(24.0).view(2, 4, 3)
    own = state[:, distributed.own_rows(4)]
    gathered = distributed.gather_rows(own, dim=-2)
    assert own.shape == (2, 2, 3)
gradients = [None if p.grad is None else p.grad.tolist() for p in parameters]
print(json.dumps({"writer": distributed.is_writer(), "nats": nats.tolist(), "total": total.tolist(),
                  "gradients": gradients, "gathered": bool((gathered == state).all()), "first": own[0, 0, 0].item()}))
"""


def test_sums_over_two_processes():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        results = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [result["writer"] for result in results] == [True, False]
    for rank, result in enumerate(results):
        assert result["nats"] == [1.5 * (rank + 1), 2.0 * (rank + 1)], "the argument is left as it was"
        assert result["total"] == [4.5, 6.0]
        assert result["gathered"]
        assert result["first"] == 6 * rank
        # the fourth has a gradient nowhere, the fifth in one process only
        assert result["gradients"] == [[[11.0] * 3] * 2, [22.0] * 4, 33.0, None, [7.0, 8.0]]


def test_one_process_pays_nothing(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (distributed.rank(), distributed.local_rank(), distributed.world_size()) == (0, 0, 1)
    assert distributed.is_writer()
    tensor = torch.ones(3)
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    gradient = parameter.grad
    with distributed.process_group(torch.device("cpu")):
        assert not torch.distributed.is_initialized()
        assert distributed.sum_over_ranks(tensor) is tensor
        distributed.sum_gradients([parameter])
        distributed.barrier()
        assert distributed.gather_rows(tensor, dim=0) is tensor
    assert distributed.own_rows(5) == slice(0, 5)
    assert parameter.grad is gradient
    assert gradient.tolist() == [1, 1, 1]


def test_choose_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert distributed.choose_device() == torch.device("cpu")
    assert distributed.choose_device("mps") == torch.device("mps")
    with pytest.raises(ValueError, match=r"^device: expected cpu or mps on this machine, got 'cuda'$"):
        distributed.choose_device("cuda")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.choose_device() == torch.device("cuda", 1)
    assert distributed.choose_device("cpu") == torch.device("cpu")
    assert distributed.choose_device(str(torch.device("cuda", 1))) == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert distributed.choose_device("cuda:1") == torch.device("cuda", 1)
    for wrong, message in (
        ("cuda:2", "from cuda:0 to cuda:1, got 'cuda:2'"),
        ("cuda:", "got 'cuda:'"),
        ("cpu:0", "expected cpu or cuda"),
    ):
        with pytest.raises(ValueError, match=message):
            distributed.choose_device(wrong)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="several processes need a GPU each, got 'cuda:1' for all; give cuda"):
        distributed.choose_device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="one process for each of the 2 GPUs here, got process 3"):
        distributed.choose_device()
