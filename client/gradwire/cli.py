"""The command line. Everything heavy is imported where it is used: --help answers at once."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import click

from gradwire.version import __version__
from gradwire.visible import visible, visible_lines

if TYPE_CHECKING:
    from gradwire.builder import Graph
    from gradwire.connection import Connection
    from gradwire.models import ReadModel
    from gradwire.printing import Evaluation
    from gradwire.results import Result

    _Bound = tuple[Graph, dict[str, Any]]

_INPUTS_SHOWN = 8
_WATCH_SECONDS = 0.1
_TEXT_FORM = b"gradwire text"
_READING = "gradwire.reading."  # how models are read, among what a command knows
_FINDINGS_SHOWN = 20
_LONG = 20_000  # nodes that take long enough to want to see how far they are

# grpc writes log lines of its own to stderr, beside our sentence, unless it is told not to
os.environ.setdefault("GRPC_VERBOSITY", "NONE")


class _Commands(click.Group):
    """Turns every error of ours into one sentence on stderr and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as failure:
            text = visible_lines(failure.format_message())
            raise click.UsageError(text, failure.ctx) from None
        except (click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            sys.stderr.close()
            ctx.exit(1)
        except Exception as failure:
            from gradwire.errors import GradwireError

            if not isinstance(failure, GradwireError):
                raise
            _fail(failure.message)


def _say_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from gradwire.local import kernel_level

        level = kernel_level()
        with_what = "NumPy: no compiled kernels fit" if level == "numpy" else f"kernels for {level}"
        _say(f"gradwire {__version__} ({with_what})")
        ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_say_version,
    help="Show the version, and what this machine computes with.",
)
def main() -> None:
    """Gradients over the wire: evaluate gate graphs forward and backward."""


def _keep(context: click.Context, option: click.Parameter, value: Any) -> None:
    """Keeps what says how a model is read, for `_load`."""
    if option.name and value:
        context.meta[_READING + option.name] = value


_parameters = click.option(
    "--parameters", type=click.Choice(("initializers", "weights", "all")), callback=_keep,
    expose_value=False, help="Which floating tensors of an ONNX model are parameters: "
    "initializers; also constants that are weights (the default); all constants.",
)  # fmt: skip
_shapes = click.option(
    "--shape", "shapes", multiple=True, metavar="NAME=N,N,?", expose_value=False,
    callback=lambda context, option, texts: _keep(context, option, dict(map(_shape, texts))),
    help="Shape of an input of an ONNX model that does not declare it. May be repeated.",
)  # fmt: skip
_sizes = click.option(
    "--size", "sizes", multiple=True, metavar="SYMBOL=N", expose_value=False,
    callback=lambda context, option, texts: _keep(context, option, dict(map(_size, texts))),
    help="Length of a symbolic axis of an ONNX model. May be repeated.",
)  # fmt: skip
_fixed = click.option(
    "--fix", "fixed", multiple=True, metavar="NAME=VALUE", expose_value=False,
    callback=lambda context, option, texts: _keep(context, option, dict(map(_fix, texts))),
    help="Makes an input of an ONNX model a constant, as --set of eval. May be repeated.",
)  # fmt: skip
_at = click.option(
    "--at", "at", multiple=True, metavar="NAME=VALUE", expose_value=False,
    callback=lambda context, option, texts: _keep(context, option, dict(map(_here, texts))),
    help="Takes shapes, branches and trip counts of an ONNX model as they are where the input has "
    "this value, and keeps the input. May be repeated.",
)  # fmt: skip
_trusted = click.option(
    "--trusted", is_flag=True, callback=_keep, expose_value=False,
    help="Read an ONNX model in this process, without limits of memory and time. Unless told so, "
    "another process does, with 4 GiB and 300 seconds.",
)  # fmt: skip
_FLAGS = {"parameters": "--parameters", "shapes": "--shape", "sizes": "--size", "fixed": "--fix",
          "at": "--at", "trusted": "--trusted"}  # fmt: skip


def _model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command that opens a model, with what says how it is read."""
    return _parameters(_shapes(_sizes(_fixed(_at(_trusted(command))))))


def _graph(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command that opens a graph."""
    source = click.argument("source", metavar="FILE|EXPRESSION")
    return source(_model_options(command))


@main.command("eval")
@_graph
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE",
    help="Value of a leaf: a number, a JSON list, or @file.npy. May be repeated.",
)  # fmt: skip
@click.option(
    "--seed", "seeds", multiple=True, metavar="OUTPUT=VALUE",
    help="Gradient of an output of many elements, as --set; a number is that of each element.",
)  # fmt: skip
@click.option(
    "--server", metavar="ADDRESS", help="HOST:PORT or unix:PATH; else an embedded server."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--watch", is_flag=True, help="Evaluate again whenever the file changes.")
def evaluate(
    source: str,
    settings: tuple[str, ...],
    seeds: tuple[str, ...],
    server: str | None,
    as_json: bool,
    watch: bool,
) -> None:
    """Evaluate a graph: every node's value and gradient.

    It is a .gate, .onnx or text file, or an expression such as "sigmoid(w*x + b)", or @FILE with
    one, which may have several lines. One that begins with a minus comes last, after --. With
    --server it may also be the name or the digest of a graph that is saved there.

    The JSON object has `outputs` {name: value}, `gradients` {leaf: value} and `nodes` [{id, name,
    operator, value, gradient}]. A gradient of null was not computed, which is not 0. NaN and
    infinities are the strings "NaN", "Infinity" and "-Infinity".
    """
    from gradwire.printing import print_evaluation

    inputs, given = dict(map(_setting, settings)), dict(map(_seed, seeds))

    def shown(
        connection: Connection, bound: _Bound, before: Evaluation | None = None
    ) -> Evaluation:
        found = _evaluated(connection, *bound, given)
        if as_json:
            _say(json.dumps(found.as_json(), allow_nan=False))
        else:
            print_evaluation(found, before)
        return found

    if watch:
        file = _watched_file(source)
        with _connected(server) as connection:
            _at_changes(file, lambda before: shown(connection, _bound(source, inputs), before))
    else:
        bound = _saved(server, source, inputs) or _bound(source, inputs)
        with _connected(server) as connection:
            shown(connection, bound)


@main.command()
@_graph
@click.option(
    "-o", "--output", required=True, type=click.Path(), help="What to write: .svg, .png or .html."
)
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="As that of gradwire eval."
)
@click.option(
    "--seed", "seeds", multiple=True, metavar="OUTPUT=VALUE", help="As that of gradwire eval."
)
@click.option("--local", is_flag=True, help="Each gate's own gradients, on the wires into it.")
@click.option(
    "--collapse", multiple=True, metavar="MODULE",
    help="Draw a module as one box; / is all of them, as where a graph has more gates than can be "
    "read. May be repeated.",
)  # fmt: skip
@click.option(
    "--open", "keep_open", multiple=True, metavar="MODULE",
    help="A module that stays open, where all are collapsed. May be repeated.",
)  # fmt: skip
@click.option(
    "--around", metavar="NAME", help="Draw only what is near a value: its name, or % and its id."
)
@click.option(
    "--radius", type=click.IntRange(min=1), default=3, show_default=True, metavar="WIRES",
    help="How near.",
)  # fmt: skip
@click.option(
    "--theme", type=click.Choice(["auto", "light", "dark"]), default="auto", show_default=True,
    help="auto is the reader's; in a PNG, light.",
)  # fmt: skip
@click.option(
    "--server", metavar="ADDRESS", help="HOST:PORT or unix:PATH; else an embedded server."
)
def draw(
    source: str,
    output: str,
    settings: tuple[str, ...],
    seeds: tuple[str, ...],
    local: bool,
    collapse: tuple[str, ...],
    keep_open: tuple[str, ...],
    around: str | None,
    radius: int,
    theme: str,
    server: str | None,
) -> None:
    """Draw a graph, evaluated: values in green, gradients in red.

    A module is a use of one of the file's, by path, or what names before a / have in common: layer1
    of layer1/scores.
    """
    from gradwire.drawing import FORMATS
    from gradwire.drawing import draw as drawn
    from gradwire.drawing.opened import gate_count

    if os.path.splitext(output)[1].lower() not in FORMATS:
        raise click.UsageError(f"-o {output}: must end in one of {', '.join(FORMATS)}")
    inputs = dict(map(_setting, settings))
    graph, inputs = _saved(server, source, inputs) or _bound(source, inputs)
    given = dict(map(_seed, seeds))
    with _connected(server) as connection:
        drawing = drawn(
            graph,
            inputs,
            seeds=_whole_seeds(connection, graph, inputs, given),
            server=connection,
            local=local,
            collapse=collapse,
            keep_open=keep_open,
            around=around,
            radius=radius,
            theme=theme,
        )
    drawing.save(output)
    _say(f"{output}: {gate_count(graph)} gates")


@main.command()
@_graph
@click.option("--text", is_flag=True, help="All of it, as text that gradwire parse reads back.")
def show(source: str, text: bool) -> None:
    """Show what is in a graph: a .gate, .onnx or text file, an expression, or @FILE with one."""
    graph = _load(source)
    if text:
        _say(graph.to_text(), nl=False)
        return
    _say(f"{source}: {graph.node_count} nodes, digest {graph.digest}")
    _say(str(graph))


@main.command()
@click.argument("before")
@click.argument("after")
@_model_options
def diff(before: str, after: str) -> None:
    """What changed from BEFORE to AFTER: .gate, .onnx or text files, or expressions.

    Leaves, nodes, attributes, outputs, and tensors by the norm of their difference; not who wrote a
    file, nor whether it has blobs. Exit code 0: nothing; 1: something; 2: a file cannot be read.
    """
    from gradwire.diff import differences
    from gradwire.errors import GradwireError

    if not any(map(_is_model, (before, after))):
        _require_no_model_options(f"{before} and {after}")
    try:
        graphs = [_opened(each, None) for each in (before, after)]
    except GradwireError as failure:
        _say(f"gradwire: {failure.message}", err=True)
        sys.exit(2)
    found = False
    for line in differences(*graphs):
        found = True
        _say(line)
    sys.exit(int(found))


@main.command()
@click.argument("file", type=click.Path())
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE",
    help="Value of a leaf: a number, a JSON list, or @file.npy. May be repeated.",
)  # fmt: skip
@click.option(
    "--server", metavar="ADDRESS", help="HOST:PORT or unix:PATH; else an embedded server."
)
@click.option(
    "--uses", default=20, show_default=True, type=click.IntRange(min=1),
    help="How many uses of each module to check.",
)  # fmt: skip
@_model_options
def check(file: str, settings: tuple[str, ...], server: str | None, uses: int) -> None:
    """Compare the modules' own gradients in a .gate FILE with finite differences.

    Each is taken by itself, with the values that its uses have at the point that is set, in
    float64. What it yields is differenced by each element of its inputs, and along random
    directions where there are many. Exit code 0: none is wrong; 1: one is, and the lines say where.
    """
    from gradwire.checking import check_gradients

    graph, wrong = _load(file), False
    if not any(module.gradient is not None for module in graph.modules):
        _say(f"{file}: no module has a gradient of its own")
        return
    with _connected(server) as connection:
        for report in check_gradients(
            graph, dict(map(_setting, settings)), server=connection, uses=uses
        ):
            found = sum(each.is_wrong for each in report.findings)
            unknown = len(report.findings) - found
            _say(
                f"module {report.module!r}: {report.checked} of {report.uses} uses checked, "
                f"{report.compared} differences: {found} wrong"
                + (f", {unknown} not to be judged" if unknown else "")
            )
            for each in report.findings[:_FINDINGS_SHOWN]:
                _say(f"  {each}")
            if len(report.findings) > _FINDINGS_SHOWN:
                _say(f"  ... and {len(report.findings) - _FINDINGS_SHOWN} more")
            wrong = wrong or found > 0
    sys.exit(int(wrong))


@main.command()
@click.argument("source", type=click.Path())
@click.option("-o", "--output", type=click.Path(), help="The .gate file to write.")
@click.option("--blobs", type=click.Path(), help="The file that has the blobs of the text.")
def parse(source: str, output: str | None, blobs: str | None) -> None:
    """Read the text form of a graph from SOURCE (- is standard input), and write it as a file.

    Without -o the text is only checked. Mistakes are told with line and column.
    """
    graph = _load_text(source, blobs)
    if output is not None:
        graph.save(output)
    _say(f"{output or source}: {graph.node_count} nodes, digest {graph.digest}")


@main.command()
@_graph
@click.argument("target", type=click.Path())
def convert(source: str, target: str) -> None:
    """Convert a .onnx file to a .gate file TARGET, or back; or write an expression as either."""
    ends = [os.path.splitext(each)[1].lower() for each in (source, target)]
    if ends[1] not in (".gate", ".onnx") or (_is_file(source) and set(ends) != {".gate", ".onnx"}):
        raise click.UsageError(f"{source} to {target}: one must end in .onnx, the other in .gate")
    _say(_convert(source, target))


def _convert(source: str, target: str) -> str:
    """Writes the target; a line of what is in it."""
    from gradwire.builder import OPERATOR_SET_VERSION

    before = after = OPERATOR_SET_VERSION
    if _is_model(source):
        graph, before = _read_model(source)
    else:
        graph = _load(source)
    if target.lower().endswith(".onnx"):
        from gradwire.onnx import to_onnx
        from gradwire.onnx.messages import versions_of

        after = versions_of(to_onnx(graph, target).opset_import)[""]
    else:
        graph.save(target)
    parameters = sum(leaf.kind == "parameter" for leaf in graph.leaves)
    return (
        f"{target}: {graph.node_count} nodes, {parameters} parameters, "
        f"operator set {before} -> {after}"
    )


@main.command()
@click.argument("operator", required=False)
@click.option(
    "--server", metavar="ADDRESS", help="HOST:PORT or unix:PATH; else an embedded server."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def gates(operator: str | None, server: str | None, as_json: bool) -> None:
    """The catalogue of gates; or one OPERATOR, with its formula and gradient."""
    from google.protobuf.json_format import MessageToDict

    from gradwire.errors import nearest

    with _connected(server) as connection:
        catalogue = connection.describe().gates
    by_name = {gate.operator: gate for gate in catalogue}
    if operator is not None and operator not in by_name:
        _fail(f"there is no gate {operator!r}{nearest(operator, by_name)}")
    chosen = [by_name[operator]] if operator else list(catalogue)
    if as_json:
        plain = [MessageToDict(gate, preserving_proto_field_name=True) for gate in chosen]
        _say(json.dumps({"gates": plain}))
    elif operator:
        _print_gate(chosen[0])
    else:
        width = 2 + max(map(len, by_name))
        for gate in chosen:
            _say(f"{gate.operator:{width}}{gate.summary}")


class _Serve(click.Command):
    """Learns the limits' flags from the server only when it is asked for them."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        from gradwire.local import LIMITS

        known = super().get_params(ctx)
        flags: list[click.Parameter] = [
            click.Option(
                [f"--{limit.name}"],
                type=click.IntRange(min=1),
                default=limit.value,
                show_default=True,
                metavar=limit.unit.upper(),
                help=limit.meaning,
            )
            for limit in LIMITS
        ]
        return [*known[:-1], *flags, known[-1]]


@main.command(cls=_Serve)
@click.option(
    "--listen", default="127.0.0.1:50051", show_default=True, metavar="ADDRESS",
    help="HOST:PORT (port 0: any free one) or unix:PATH.",
)  # fmt: skip
@click.option(
    "--log-level", default="warning", show_default=True,
    type=click.Choice(["debug", "info", "warning", "error"]), help="Of the JSON log on stderr.",
)  # fmt: skip
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(min=1), metavar="PROCESSES",
    help="Processes that share the port; limits hold for each.",
)  # fmt: skip
@click.option(
    "--drain-seconds", default=30.0, show_default=True,
    help="How long running calls may go on after SIGTERM.",
)  # fmt: skip
@click.option(
    "--shared-memory", metavar="DIRECTORY",
    help="Let clients of this user on this machine share memory with the server, which they meet "
    "in DIRECTORY (mode 0700, made where it is missing), such as /dev/shm/gradwire.",
)  # fmt: skip
@click.option(
    "--store", metavar="DIRECTORY|s3://BUCKET/PREFIX",
    help="Save graphs here, for `gradwire save`: in a directory, made where it is missing, which "
    "servers of one machine may share; or in an S3-compatible store, with endpoint and keys from "
    "AWS's environment variables.",
)  # fmt: skip
@click.option(
    "--web/--no-web", default=True, show_default=True,
    help="Show a page for browsers, on the host where gRPC listens.",
)  # fmt: skip
@click.option(
    "--web-port", type=click.IntRange(0, 65535), metavar="PORT",
    help="Of the page (0: any free one); else 5051, or any free one where that is taken.",
)  # fmt: skip
@click.option(
    "--web-host", "web_hosts", multiple=True, metavar="NAME",
    help="A name that browsers may call the page by, beside localhost and IP addresses: that of a "
    "reverse proxy. May be repeated.",
)  # fmt: skip
def serve(
    listen: str,
    log_level: str,
    workers: int,
    drain_seconds: float,
    shared_memory: str | None,
    store: str | None,
    web: bool,
    web_port: int | None,
    web_hosts: tuple[str, ...],
    **limits: int,
) -> None:
    """Serve gradients over gRPC until told to stop, and a page that shows them."""
    from gradwire import uploads
    from gradwire.local import PageOptions
    from gradwire.local import serve as serve_until_told

    for each in web_hosts:
        if set(each) & set("/:"):
            raise click.UsageError(
                f"--web-host {each}: write the name alone, without http and port"
            )
    page = PageOptions(uploads.read_file, uploads.read_expression, web_port, web_hosts)
    serve_until_told(
        listen,
        workers=workers,
        log_level=log_level,
        drain_seconds=drain_seconds,
        shared_memory=shared_memory,
        store=store,
        page=page if web else None,
        **limits,
    )


_server = click.option(
    "--server", required=True, metavar="ADDRESS", help="HOST:PORT or unix:PATH of the server."
)
_expected = click.option(
    "--expect", "expected", metavar="DIGEST",
    help="Only if the name refers to this; 'nothing': only if there is no such name.",
)  # fmt: skip


@main.command()
@_graph
@click.option("--name", default="", help="A name to move to the graph.")
@_expected
@click.option("--validate-only", is_flag=True, help="Let the server check the graph, no more.")
@_server
def save(source: str, name: str, expected: str | None, validate_only: bool, server: str) -> None:
    """Save a graph, of a file or an expression, on a server; prints its digest.

    A large graph is sent in pieces; after an error, saving again goes on from there.
    """
    graph = _load(source)
    with _connected(server) as connection, _progress("saving") as progress:
        found = connection.save_graph(
            graph,
            name,
            expected=_expectation(expected),
            validate_only=validate_only,
            progress=progress,
        )
    _say(found.digest)


@main.command("list")
@click.argument("prefix", default="")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@_server
def list_saved(prefix: str, as_json: bool, server: str) -> None:
    """The graphs saved on a server; only names that begin with PREFIX, if there is one."""
    with _connected(server) as connection:
        for each in connection.list_graphs(prefix):
            at = each.saved_at.isoformat(timespec="seconds") if each.saved_at else ""
            if as_json:
                row = {"digest": each.digest, "size": each.size, "saved_at": at, "name": each.name}
                _say(json.dumps(row))
            else:
                _say(f"{each.digest}  {each.size:>12}  {at}  {each.name}".rstrip())


@main.command()
@click.argument("graph", metavar="NAME|DIGEST")
@click.option("-o", "--output", required=True, type=click.Path(), help="The .gate file to write.")
@_server
def get(graph: str, output: str, server: str) -> None:
    """Get a graph that is saved on a server, as a file."""
    with _connected(server) as connection, _progress("getting") as progress:
        found = connection.get_graph(graph, progress=progress)
    found.save(output)
    _say(found.digest)


@main.command()
@click.argument("graph", metavar="NAME|DIGEST")
@_expected
@_server
def delete(graph: str, expected: str | None, server: str) -> None:
    """Delete a name, whose graph stays; or, by its digest, a graph and all its names."""
    with _connected(server) as connection:
        _say(connection.delete_graph(graph, expected=_expectation(expected)))


@main.command()
def warmup() -> None:
    """Say that nothing is to be done: compiled kernels come with the package."""
    _say("nothing to do: the compiled kernels come with the package")


@main.command()
@click.argument("address", default="127.0.0.1:50051")
def health(address: str) -> None:
    """Ask whether the server at ADDRESS is serving; exit code 1 where it is not."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        try:
            found = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=3
            )
        except grpc.RpcError as failure:
            _fail(f"no server answers at {address}: {failure.code().name}")
    if found.status != health_pb2.HealthCheckResponse.SERVING:
        _fail(f"the server at {address} is not serving")
    _say("serving")


def _is_file(source: str) -> bool:
    """Whether an argument names a file; else it is an expression."""
    return source.lower().endswith((".gate", ".onnx")) or os.path.exists(source)


def _reading() -> dict[str, Any]:
    """The options of the command that say how a model is read."""
    meta = click.get_current_context().meta
    return {name.removeprefix(_READING): meta[name] for name in meta if name.startswith(_READING)}


def _require_no_model_options(source: str) -> None:
    given = [_FLAGS[name] for name in _reading()]
    if given:
        verb = "are" if len(given) > 1 else "is"
        raise click.UsageError(f"{source}: {' and '.join(given)} {verb} for ONNX models")


def _load(source: str, values: Mapping[str, Any] | None = None) -> Graph:
    """The graph in a file, or of an expression, whose inputs have these values."""
    if not _is_model(source):
        _require_no_model_options(source)
    return _opened(source, values)


def _is_model(source: str) -> bool:
    return source.lower().endswith(".onnx")


def _opened(source: str, values: Mapping[str, Any] | None) -> Graph:
    if not _is_file(source):
        return _parsed(source, values)
    if _is_model(source):
        return _read_model(source).graph
    from gradwire.builder import Graph

    return _load_text(source) if _begins_as_text(source) else Graph.load(source)


def _read_model(source: str) -> ReadModel:
    """The graph of a model; whoever wrote the file can end the process that reads it alone."""
    options = _reading()
    if options.pop("trusted", False):
        from gradwire.onnx.apart import read_here

        return read_here(source, options)
    from gradwire.isolation import own_pool

    own_pool().warm()  # it starts while this process loads its own modules
    from gradwire.models import read_apart

    return read_apart(source, options, "if you trust the file, read it with --trusted")


def _begins_as_text(file: str) -> bool:
    if not os.path.isfile(file):
        return False  # to open a pipe would wait for its writer
    try:
        with open(file, "rb") as opened:
            return opened.read(len(_TEXT_FORM)) == _TEXT_FORM
    except OSError:
        return False  # and whoever loads it says why


def _load_text(file: str, blobs: str | None = None) -> Graph:
    from gradwire.builder import Graph
    from gradwire.errors import FileError, InvalidRequestError

    try:
        return Graph.from_text(_read(file), blobs)
    except InvalidRequestError as failure:
        raise FileError(failure.reason, f"{file}: {failure.message}", failure.facts) from None


def _read(file: str) -> str:
    """What is in a text file; - is standard input."""
    try:
        with click.open_file(file, encoding="utf-8") as opened:
            text: str = opened.read()
        return text
    except UnicodeDecodeError:
        fault = "is not text; gradwire show --text prints that of a graph file"
    except OSError as failure:
        fault = f"cannot be read: {failure.strerror}"
    from gradwire.errors import FileError

    raise FileError("FILE_INVALID", f"{file}: {fault}")


def _parsed(source: str, values: Mapping[str, Any] | None) -> Graph:
    """The graph of an expression, or of the one in @FILE."""
    from gradwire.errors import TextError
    from gradwire.expressions import parse_expression

    is_inside = source.startswith("@")
    try:
        return parse_expression(_read(source[1:]) if is_inside else source, values)
    except TextError as failure:
        place = f"{source[1:]}: " if is_inside else _no_file(source)
        raise TextError(failure.reason, place + failure.message, failure.facts) from None


def _no_file(source: str) -> str:
    """What to say before the fault of an expression that may be a file's name, mistyped."""
    may_be = all(each.isalnum() or each in "._-/\\~ " for each in source)
    return f"there is no file {source!r}, and as an expression: " if may_be else ""


def _connected(server: str | None) -> Connection:
    if server is not None:
        from gradwire.connection import Connection

        return Connection(server)
    from gradwire.local import local

    return local(warm_up=False)


def _expectation(expected: str | None) -> str | None:
    return "" if expected == "nothing" else expected


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr for bytes sent or received, where somebody looks at it."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    shown = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(
        *shown, TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _bound(source: str, inputs: dict[str, Any]) -> _Bound:
    """A graph and what to bind; an expression's inputs have their values already.

    Inputs that a model is read at are there, unless they are set.
    """
    graph = _load(source, inputs)
    inputs = {**_reading().get("at", {}), **inputs}
    bound = inputs if _is_file(source) else {}
    _require_inputs(f"{source}: " if _is_file(source) else _no_file(source), graph, bound)
    return graph, bound


def _saved(server: str | None, source: str, inputs: dict[str, Any]) -> _Bound | None:
    """A graph that the server has saved, and what to bind; None where it has none so named."""
    if server is None or source.startswith("@") or _is_file(source):
        return None
    from gradwire.connection import Connection
    from gradwire.errors import InvalidRequestError, NotFoundError, UnsupportedError

    try:
        with Connection(server) as connection:
            graph = connection.get_graph(source)
    except (NotFoundError, UnsupportedError):  # or a server that saves nothing
        return None
    except InvalidRequestError as failure:
        if failure.reason != "NAME_INVALID":
            raise
        return None
    _require_inputs(f"{source}: ", graph, inputs)
    return graph, inputs


def _evaluated(
    connection: Connection, graph: Graph, inputs: dict[str, Any], seeds: dict[str, Any]
) -> Evaluation:
    """Every value and gradient."""
    from gradwire.printing import Evaluation

    whole = _whole_seeds(connection, graph, inputs, seeds)
    if sys.stderr.isatty() and graph.node_count >= _LONG:
        result = _evaluate_with_progress(connection, graph, inputs, whole)
    else:
        result = connection.evaluate(graph, inputs, seeds=whole, values=True, gradients=True)
    return Evaluation.of(graph, result)


def _require_inputs(place: str, graph: Graph, given: dict[str, Any]) -> None:
    """Every input has a value, or the error says where, and what to type (INPUT_MISSING)."""
    import shlex

    from gradwire.errors import InvalidRequestError

    missing = [leaf for leaf in graph.leaves if leaf.value is None and leaf.name not in given]
    if not missing:
        return
    shown = missing[:_INPUTS_SHOWN]
    options = [
        "--set " + shlex.quote(f"{leaf.name}={f'@{leaf.name}.npy' if leaf.axes else 'NUMBER'}")
        for leaf in shown
    ]
    tensors = [f"{leaf.name} is {leaf.dtype}{list(leaf.axes)}" for leaf in shown if leaf.axes]
    whose = f"input {missing[0].name!r} has" if len(missing) == 1 else f"{len(missing)} inputs have"
    hints = " ".join(options) + ("" if shown == missing else " ...")
    hints += f" ({', '.join(tensors)})" if tensors else ""
    raise InvalidRequestError("INPUT_MISSING", f"{place}{whose} no value; add {visible(hints)}")


def _watched_file(source: str) -> str:
    file = source if _is_file(source) else source[1:]
    if not os.path.isfile(file) or (file != source and not source.startswith("@")):
        raise click.UsageError("--watch needs a file: a graph's, or @FILE with an expression")
    return file


def _at_changes(file: str, show: Callable[[Evaluation | None], Evaluation]) -> None:
    """Shows an evaluation now, and whenever the file is another, until interrupted."""
    from gradwire.errors import GradwireError

    before = None
    seen: tuple[int, ...] = ()
    try:
        while True:
            found = _state(file)
            if found and found != seen:  # none is there while an editor replaces it
                seen = found
                try:
                    before = show(before)
                except GradwireError as failure:
                    _say(f"gradwire: {failure.message}", err=True)
            time.sleep(_WATCH_SECONDS)
    except KeyboardInterrupt:
        return


def _state(file: str) -> tuple[int, ...]:
    """Differs when a file was written or replaced; empty where there is none."""
    try:
        found = os.stat(file)
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _whole_seeds(
    connection: Connection, graph: Graph, inputs: dict[str, Any], given: dict[str, Any]
) -> dict[str, Any]:
    """Seeds in the shapes of their outputs, which a pass forward tells where numbers are given."""
    import numpy as np

    from gradwire import tensors

    numbers = {name for name, seed in given.items() if name in graph.outputs and not np.ndim(seed)}
    if not numbers:
        return given
    outputs = connection.evaluate(graph, inputs, forward_only=True).outputs
    whole = dict(given)
    for name in numbers:
        what, dtype = f"seed of output {name!r}", graph.output_dtype(name)
        number = tensors.from_value(what, given[name], dtype)
        whole[name] = np.full(outputs[name].shape, number)
    return whole


def _evaluate_with_progress(
    connection: Connection, graph: Graph, inputs: dict[str, Any], seeds: dict[str, Any]
) -> Result:
    """Every value and gradient, with a bar on stderr of how many have come."""
    from dataclasses import replace

    from rich.console import Console
    from rich.progress import Progress

    from gradwire.results import Result

    found: dict[str, dict[int, Any]] = {"value": {}, "gradient": {}}
    result = Result({}, {})
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("evaluating", total=2 * graph.value_count)
        for number, event in enumerate(connection.stream(graph, inputs, seeds=seeds)):
            if isinstance(event, Result):
                result = event
            else:
                found[event.kind][event.id] = event.content
            if number % 1000 == 0:
                progress.update(task, completed=number)
    return replace(result, node_values=found["value"], node_gradients=found["gradient"])


def _size(text: str) -> tuple[str, int]:
    symbol, _, size = text.rpartition("=")
    if not symbol or not (size.isascii() and size.isdigit()):
        raise click.UsageError(f"--size {text}: write SYMBOL=N, such as --size batch=8")
    return symbol, int(size)


def _shape(text: str) -> tuple[str, tuple[int | str | None, ...]]:
    name, equals, axes = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"--shape {text}: write NAME=N,N,?, such as --shape x=1,3,?,?")
    given = [each.strip() for each in axes.split(",")] if axes else []
    return name, tuple(
        int(each) if each.isascii() and each.isdigit() else None if each in ("", "?") else each
        for each in given
    )


def _fix(text: str) -> tuple[str, Any]:
    return _setting(text, "--fix")


def _here(text: str) -> tuple[str, Any]:
    return _setting(text, "--at")


def _seed(text: str) -> tuple[str, Any]:
    return _setting(text, "--seed")


def _setting(text: str, option: str = "--set") -> tuple[str, Any]:
    """NAME=VALUE, the value as a number, a list, or the array in a file."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"{option} {text}: write NAME=VALUE, such as {option} x=1.5")
    if value.startswith("@"):
        import numpy as np

        try:
            return name, np.load(value[1:], allow_pickle=False)
        except OSError as failure:
            _fail(f"{option} {name}: {value[1:]} cannot be read: {failure.strerror or failure}")
        except (EOFError, ValueError):  # NumPy's own sentence advises to trust the file
            _fail(f"{option} {name}: {value[1:]} is no .npy file of numbers, or is cut")
    try:
        found = json.loads(value)
    except (json.JSONDecodeError, RecursionError):
        found = {}
    if isinstance(found, dict) or (found is None and option != "--fix"):  # an optional may be null
        raise click.UsageError(
            f"{option} {name}: {value[:60]!r} is not a number, a JSON list, or @file.npy"
        )
    return name, found


def _print_gate(gate: Any) -> None:
    _say(f"{gate.operator}: {gate.summary}\n")
    lines = [("formula", gate.formula), ("gradient", gate.gradient)]
    lines += [("kinks", gate.subgradient), ("shapes", gate.shapes)]
    for each in gate.inputs:
        marks = [m for m in ("optional", "variadic", "known") if getattr(each, m)]
        lines.append(("input", each.name + (f" ({', '.join(marks)})" if marks else "")))
    for each in gate.attributes:
        field = each.default_value.WhichOneof("value")
        default = getattr(each.default_value, field) if field else None
        given = "required" if each.required else f"default {default}" if field else "optional"
        lines.append(("attribute", f"{each.name}: {each.kind}, {given}"))
    for label, text in lines:
        if text:
            _say(f"{label:10}{text}")


def _say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Prints lines; what a file says in them is shown, and does nothing to the terminal."""
    click.echo(visible_lines(text), err=err, nl=nl)


def _fail(message: str) -> NoReturn:
    """One sentence on stderr, exit code 1."""
    _say(f"gradwire: {message}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
