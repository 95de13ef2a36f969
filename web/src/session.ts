/** Live evaluation over a WebSocket: the newest point is always on its way, and none is queued. */

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import {
  GraphSourceSchema,
  OpenSchema,
  SessionRequestSchema,
  SessionResponseSchema,
  StepSchema,
  type Binding,
  type Evaluation,
  type Result,
  type SessionRequest,
} from "./gen/gradwire/v1/service_pb";
import { Failure } from "./server";

export interface Listener {
  result(result: Result): void;
  failure(failure: Failure): void;
  /** False while there is no server, and nothing but the last numbers. */
  connected(yes: boolean, refused: boolean): void;
}

const FAILED = 4000; // the code with which the server closes a session that it refuses
const [FIRST_WAIT, LONGEST_WAIT] = [250, 4000]; // milliseconds until it is tried again

/** Opens itself again when the server comes back, at the point it was at. */
export class Session {
  private socket: WebSocket | undefined;
  private timer = 0;
  private wait = FIRST_WAIT;
  private opened = false;
  private inFlight = false;
  private closed = false;
  /** The numbers on the page are not those of the point: the session's first answer brings them. */
  private behind: boolean;
  private readonly pending = new Map<string, Binding>();
  private next = 1n;

  constructor(
    private readonly graph: Uint8Array,
    /** The whole of the current point, each time it is opened. */
    private readonly evaluation: () => Evaluation,
    private readonly listener: Listener,
    behind: boolean,
  ) {
    this.behind = behind;
    this.connect();
  }

  /** Evaluates at a new point: of several bindings for a leaf only the last counts. */
  step(binding: Binding): void {
    this.pending.set(binding.leaf, binding);
    if (this.socket?.readyState === WebSocket.CLOSED && !this.timer) this.connect();
    this.sendNext();
  }

  close(): void {
    this.closed = true;
    clearTimeout(this.timer);
    this.socket?.close();
  }

  private connect(): void {
    this.timer = 0;
    const address = new URL("session", location.href);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.opened = this.inFlight = false;
    socket.onopen = () => {
      const source = { case: "graph", value: this.graph } as const;
      const graph = create(GraphSourceSchema, { source });
      const open = create(OpenSchema, { graph, evaluation: this.evaluation() });
      this.send(create(SessionRequestSchema, { action: { case: "open", value: open } }));
    };
    socket.onmessage = ({ data }) => this.hear(new Uint8Array(data as ArrayBuffer));
    socket.onclose = ({ code }) => this.lost(code === FAILED);
  }

  /** A session that the server refused is opened again by the next step; others as soon as can be. */
  private lost(refused: boolean): void {
    if (this.closed) return;
    this.opened = false;
    this.behind = true; // the next server is another one: what it says may differ
    this.listener.connected(false, refused);
    if (refused) return;
    this.timer = window.setTimeout(() => this.connect(), this.wait);
    this.wait = Math.min(LONGEST_WAIT, this.wait * 2);
  }

  private hear(bytes: Uint8Array): void {
    const { outcome } = fromBinary(SessionResponseSchema, bytes);
    this.inFlight = false;
    if (outcome.case === "started") {
      this.opened = true;
      this.wait = FIRST_WAIT;
      this.listener.connected(true, false);
      if (this.behind) this.send(step([]));
      this.behind = false;
    }
    if (outcome.case === "result") this.listener.result(outcome.value);
    if (outcome.case === "error") this.listener.failure(new Failure(outcome.value.message));
    this.sendNext();
  }

  private sendNext(): void {
    if (!this.opened || this.inFlight || this.pending.size === 0) return;
    const bindings = [...this.pending.values()];
    this.pending.clear();
    this.send(step(bindings));
  }

  private send(request: SessionRequest): void {
    request.requestId = this.next++;
    this.inFlight = true;
    this.socket?.send(toBinary(SessionRequestSchema, request));
  }
}

function step(bindings: Binding[]): SessionRequest {
  const action = { case: "step", value: create(StepSchema, { bindings }) } as const;
  return create(SessionRequestSchema, { action });
}
