"""Philote: a value is one call, its gradient another; each a stream of chunks.

A chunk's size is the caller's choice; here a whole vector goes in one, as long as it fits into a
gRPC message.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import philote_mdo.general as philote
from philote_mdo.generated import data_pb2
from work import Work

_CHUNK = 400_000


def serve(work: Work, port: int, mode: str) -> None:
    class Discipline(philote.ExplicitDiscipline):
        def setup(self) -> None:
            self.add_input("theta", shape=work.point.shape)
            self.add_output("f", shape=(1,))

        def setup_partials(self) -> None:
            self.declare_partials("f", "theta")

        def compute(self, inputs: Any, outputs: Any) -> None:
            outputs["f"] = np.array([work.value_and_gradient(inputs["theta"])[0]])

        def compute_partials(self, inputs: Any, partials: Any) -> None:
            partials["f", "theta"] = work.value_and_gradient(inputs["theta"])[1]

    server = grpc.server(ThreadPoolExecutor(16))
    philote.ExplicitServer(discipline=Discipline()).attach_to_server(server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


def connect(work: Work, port: int, mode: str) -> Callable[[], Any]:
    client = philote.ExplicitClient(channel=grpc.insecure_channel(f"127.0.0.1:{port}"))
    client._stream_options = data_pb2.StreamOptions(num_double=_CHUNK)  # it has no setter
    client.send_stream_options()
    client.run_setup()
    client.get_variable_definitions()
    client.get_partials_definitions()
    given = {"theta": work.point}

    def call() -> tuple[float, Any]:
        value = client.run_compute(given)["f"][0]
        return value, client.run_compute_partials(given)["f", "theta"].ravel()

    return call
