"""The service of examples/serve.py gives every task's outputs over a socket, also to threads side by side."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparsemtl as sm

for library in ("fastapi", "uvicorn", "onnxruntime", "onnxscript"):
    pytest.importorskip(library)

TASKS = ("colour", "price")


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, nn.Module]]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("serve")
    model = sm.SharedBottom(nn.Linear(3, 5), [sm.Classification("colour", 4), sm.Regression("price")]).eval()
    small: dict[str, nn.Module] = {task: sm.compact(model, task=task) for task in TASKS}
    for task, network in small.items():
        sm.export(network, folder / f"{task}.onnx", outputs=[task])
    return folder, small


@pytest.fixture(scope="module")
def address(networks: tuple[Path, dict[str, nn.Module]]) -> Iterator[str]:
    import uvicorn

    spec = importlib.util.spec_from_file_location("example_serve", Path(__file__).parent.parent / "examples/serve.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = uvicorn.Server(uvicorn.Config(module.service(networks[0]), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()
    yield f"http://{host}:{port}"
    server.should_exit = True
    thread.join()
    del sys.modules[spec.name]


def asked(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def test_two_tasks_are_served_to_two_threads(networks: tuple[Path, dict[str, nn.Module]], address: str) -> None:
    assert list(asked(f"{address}/tasks")) == list(TASKS)
    together = threading.Barrier(2)

    def check(task: str) -> int:
        generator = torch.Generator().manual_seed(len(task))
        together.wait()
        for samples in range(1, 21):
            x = torch.randn(samples, 3, generator=generator)
            answer = asked(f"{address}/predict/{task}", {"inputs": x.tolist()})
            torch.testing.assert_close(torch.tensor(answer[task]), networks[1][task](x).detach(), atol=1e-5, rtol=1e-4)
        return samples

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(check, TASKS)) == [20, 20]


@pytest.mark.parametrize(
    ("task", "inputs", "status", "text"),
    [
        ("size", [[1, 2, 3]], 404, "unknown task 'size'; there are colour, price"),
        ("price", [[1, 2]], 422, "reads inputs of shape .*, got .1, 2."),
        ("price", [[1, 2, "x"]], 422, "inputs are no tensor.float"),
        ("price", [[1, 2], [3]], 422, "inputs are no tensor.float"),
    ],
)
def test_wrong_requests_are_answered_with_the_reason(
    address: str, task: str, inputs: Any, status: int, text: str
) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        asked(f"{address}/predict/{task}", {"inputs": inputs})
    assert caught.value.code == status
    with caught.value as answer:
        found = json.load(answer)["detail"]
    assert re.search(text, found)
