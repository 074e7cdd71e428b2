"""Runtimes that latency is measured on: eager PyTorch, compiled, ONNX Runtime, OpenVINO, ExecuTorch, or a command."""

from convwright.cost.runtimes.registry import (
    RUNTIMES,
    RunnableProgram,
    Runtime,
    Target,
    Timer,
    installed,
    program,
    runtime_named,
)

__all__ = ["RUNTIMES", "RunnableProgram", "Runtime", "Target", "Timer", "installed", "program", "runtime_named"]
