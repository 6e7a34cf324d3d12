"""Serve every task of a run over HTTP, from one ONNX file per task, with FastAPI and onnxruntime.

    pip install 'sparsemtl[onnx,serve]'
    sparsemtl run examples/digits.yaml --out runs/digits
    sparsemtl export runs/digits --format onnx
    python examples/serve.py runs/digits/export --port 8000

    curl localhost:8000/tasks
    curl localhost:8000/predict/digit -H 'content-type: application/json' -d '{"inputs": [[...], [...]]}'

The service needs neither torch nor sparsemtl: copy this file and the ONNX files. A request runs in a thread of
FastAPI's pool; sessions of onnxruntime may be run from many threads at once.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(int64)": np.int64}


class Batch(BaseModel):
    """Body of a request: samples, nested lists of the shape that the network reads."""

    inputs: list[Any]


def service(folder: Path, threads: int = 1) -> FastAPI:
    """Return the application that serves all networks `TASK.onnx` of a folder.

    Args:
        folder: the folder.
        threads: number of threads of one request; requests run side by side.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    sessions = {
        file.stem: onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        for file in sorted(folder.glob("*.onnx"))
    }
    if not sessions:
        raise SystemExit(f"{folder} has no .onnx files; write them by `sparsemtl export RUN --format onnx`.")
    app = FastAPI(title="sparsemtl")

    @app.get("/tasks")
    def tasks() -> dict[str, list[Any]]:
        """Return task -> shape of its input; the first axis is the batch."""
        return {task: session.get_inputs()[0].shape for task, session in sessions.items()}

    @app.post("/predict/{task}")
    def predict(task: str, batch: Batch) -> dict[str, Any]:
        """Return the outputs of one task, by name."""
        if task not in sessions:
            raise HTTPException(404, f"unknown task {task!r}; there are {', '.join(sessions)}.")
        (read,), made = sessions[task].get_inputs(), sessions[task].get_outputs()
        try:
            x = np.asarray(batch.inputs, TYPES[read.type])
        except (ValueError, TypeError) as error:
            raise HTTPException(422, f"inputs are no {read.type} of shape {read.shape}: {error}.") from error
        sizes = zip(read.shape, x.shape, strict=False)
        if x.ndim != len(read.shape) or any(isinstance(size, int) and size != found for size, found in sizes):
            raise HTTPException(422, f"{task!r} reads inputs of shape {read.shape}, got {list(x.shape)}.")
        outputs = sessions[task].run(None, {read.name: x})
        return {each.name: output.tolist() for each, output in zip(made, outputs, strict=True)}

    return app


if __name__ == "__main__":
    import uvicorn

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    uvicorn.run(service(given.folder), port=given.port)
