"""Runtimes that latency is measured on: eager PyTorch, compiled, ONNX Runtime, OpenVINO, ExecuTorch, or a command."""

from convwright.cost.runtimes.registry import (
    RUNTIMES,
    Program,
    Runtime,
    Target,
    Timer,
    installed,
    program,
    runtime_named,
)

__all__ = ["RUNTIMES", "Program", "Runtime", "Target", "Timer", "installed", "program", "runtime_named"]
