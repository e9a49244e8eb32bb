from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch

from maskclip_bench import distributed
from maskclip_bench.errors import ConfigError


def test_single_process__everything_is_free() -> None:
    tensor = torch.arange(3.0)
    assert not distributed.is_distributed()
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.is_main()
    assert distributed.gather(tensor, with_gradient=True) is tensor
    assert distributed.gather(tensor, with_gradient=False) is tensor
    assert distributed.all_reduce_mean(tensor) is tensor
    assert distributed.all_reduce_sum(tensor) is tensor
    distributed.barrier()
    with distributed.process_group(torch.device("cpu")):
        assert not distributed.is_distributed()


def test_local_rank__from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert distributed.local_rank() == 0
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert distributed.local_rank() == 3


WORKER = """
import sys
import torch
from maskclip_bench import distributed
from maskclip_bench.errors import DataError
from maskclip_bench.modeling.losses import contrastive_loss

# Every rank holds two rows; the loss of rank r weights the gathered rows by 1..4 times (r + 1).
with distributed.process_group(torch.device("cpu")):
    rank = distributed.rank()
    assert distributed.is_distributed() and distributed.world_size() == 2
    assert distributed.is_main() == (rank == 0)
    rows = torch.tensor([[1.0], [2.0]]) + 10 * rank
    for with_gradient in (True, False):
        own = rows.clone().requires_grad_()
        gathered = distributed.gather(own, with_gradient=with_gradient)
        assert gathered.flatten().tolist() == [1.0, 2.0, 11.0, 12.0]
        weights = torch.tensor([[1.0], [2.0], [3.0], [4.0]]) * (rank + 1)
        assert gathered.requires_grad == with_gradient
        if with_gradient:  # the sum over the losses of both ranks: 1 + 2 = 3 times
            (gathered * weights).sum().backward()
            expected = 3 * (torch.tensor([1.0, 2.0]) + 2 * rank)
            assert own.grad.flatten().tolist() == expected.tolist(), own.grad

    # gather: paper, against the formula of SLIP's losses.py on everything gathered as a constant.
    draws = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    image, text = torch.nn.functional.normalize(draws, dim=-1)
    part = slice(2 * rank, 2 * rank + 2)
    own_image, own_text = image[part].clone().requires_grad_(), text[part].clone().requires_grad_()
    scale = torch.tensor(7.0, requires_grad=True)
    ours = sum(contrastive_loss(own_image, own_text, scale, gather="paper")) / 2
    labels = 2 * rank + torch.arange(2)
    cross_entropy = torch.nn.functional.cross_entropy
    plain = cross_entropy(scale * own_image @ text.T, labels)
    plain = (plain + cross_entropy(scale * own_text @ image.T, labels)) / 2
    torch.testing.assert_close(ours, plain)
    inputs = (own_image, own_text, scale)
    for one, other in zip(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(plain, inputs), strict=True
    ):
        torch.testing.assert_close(one, other)
    value = torch.tensor(float(rank), requires_grad=True)
    assert distributed.all_reduce_mean(value).item() == 0.5
    assert distributed.all_reduce_sum(value).item() == 1.0
    assert not distributed.all_reduce_sum(value).requires_grad

    # on_main: the result, or the error, of rank 0 on both.
    assert distributed.broadcast_text(f"é{rank}") == "é0"
    assert distributed.on_main(lambda: f"from {rank}") == "from 0"
    assert distributed.on_main(lambda: None) == ""

    def fail(error):
        assert rank == 0
        raise error

    for error in (DataError("missing"), KeyError("bug")):
        try:
            distributed.on_main(lambda: fail(error))
        except DataError as raised:
            assert str(raised) == "missing"
        except KeyError as raised:
            assert rank == 0 and raised is error
        except RuntimeError as raised:
            assert rank == 1 and str(raised) == "The main process failed: KeyError: 'bug'"
    distributed.barrier()
assert not distributed.is_distributed()
"""


def test_on_main__one_process() -> None:
    assert distributed.on_main(lambda: "done") == "done"
    assert distributed.on_main(lambda: None) == ""
    assert distributed.broadcast_text("abc") == "abc"
    with pytest.raises(ConfigError, match="wrong"):
        distributed.on_main(lambda: (_ for _ in ()).throw(ConfigError("wrong")))


def test_two_gloo_processes__gather_and_reduce() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = []
    for rank in range(2):
        environment = {
            **os.environ,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": "2",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "OMP_NUM_THREADS": "1",
        }
        workers.append(
            subprocess.Popen(
                [sys.executable, "-c", WORKER],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    messages = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(messages)
