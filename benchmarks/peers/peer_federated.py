"""pytensor-federated: its stream, which its documentation calls much faster than single calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpclib.server
import numpy as np
from pytensor_federated import (
    ArraysToArraysService,
    LogpGradServiceClient,
    wrap_logp_grad_func,
)
from work import Work


def serve(work: Work, port: int, mode: str) -> None:
    def compute(theta: Any) -> tuple[Any, list[Any]]:
        value, gradient = work.value_and_gradient(theta)
        return np.array(value), [gradient]

    async def run() -> None:
        server = grpclib.server.Server([ArraysToArraysService(wrap_logp_grad_func(compute))])
        await server.start("127.0.0.1", port)
        await server.wait_closed()

    asyncio.run(run())


def connect(work: Work, port: int, mode: str) -> Callable[[], Any]:
    client = LogpGradServiceClient("127.0.0.1", port)

    def call() -> tuple[float, Any]:
        value, (gradient,) = client.evaluate(work.point)
        return value, gradient

    return call
