"""One of two processes of test_qat_distributed: python distributed_worker.py RANK FOLDER. Writes FOLDER/<way>.RANK when a way is done."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from soniq_kernels import qat

WORLD = 2


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


def rows(seed: int) -> torch.Tensor:
    return torch.rand(8, 12, generator=torch.Generator().manual_seed(seed))


def prepared() -> nn.Module:
    return qat.prepare(network(), qat.Config(first_bits=None, last_bits=None), rows(9))


def steps(model: nn.Module, count: int, seed: int) -> None:
    """Each process has a batch of its own."""
    optimizer = torch.optim.Adam(qat.param_groups(model, lr=0.01))
    for step in range(count):
        x = rows(seed + WORLD * step + distributed.get_rank())
        (model(x).square().mean() + qat.bit_penalty(model)).backward()
        optimizer.step()
        optimizer.zero_grad()


def by_ddp() -> nn.Module:
    model = DistributedDataParallel(prepared())
    steps(model, 3, seed=0)
    model = DistributedDataParallel(qat.freeze(model).module)
    steps(model, 3, seed=50)
    return model.module


def by_fsdp() -> nn.Module:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    mesh = distributed.device_mesh.init_device_mesh("cpu", (WORLD,))
    model = prepared()
    for layer in model:
        if isinstance(layer, qat.QuantLayer):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    steps(model, 3, seed=0)
    qat.freeze(model)
    steps(model, 3, seed=50)
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    gathered = prepared()
    gathered.load_state_dict(broadcast(whole, gathered))
    return gathered


def broadcast(state: dict, like: nn.Module) -> dict:
    """The first process has the whole state; the others get it for the comparison."""
    result = {}
    for key, tensor in like.state_dict().items():
        value = state[key].clone() if key in state else torch.empty_like(tensor)
        distributed.broadcast(value, 0)
        result[key] = value
    return result


def same_everywhere(model: nn.Module) -> bool:
    for tensor in model.state_dict().values():
        others = [torch.empty_like(tensor) for _ in range(WORLD)]
        distributed.all_gather(others, tensor.contiguous())
        if not all(torch.equal(tensor, other) for other in others):
            return False
    return True


def check(model: nn.Module) -> None:
    assert same_everywhere(model)
    assert {w for layer in model if isinstance(layer, qat.QuantLayer) for w in layer.widths} == {2, 4}
    assert qat.verify(model, qat.convert(model), rows(7))
    before = prepared().state_dict()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert {"0.weight", "0.input.precision", "2.weight_gain", "4.input.gain"} <= moved


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=WORLD)
    try:
        for way in (by_ddp, by_fsdp):
            check(way())
            (folder / f"{way.__name__}.{rank}").touch()
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
