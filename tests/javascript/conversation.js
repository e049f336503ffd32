// A conversation with the server of test_realtime_clients.py, by the client that browsers use. What it sees goes to
// standard output as one JSON list; "now" on a line of its own asks for the restart of the server.
//
//   node conversation.js URL polling|websocket|upgrade

import { once } from "node:events";
import { io } from "socket.io-client";

const [url, how] = process.argv.slice(2);
const transports = how === "upgrade" ? ["polling", "websocket"] : [how];
const options = { transports, forceNew: true, reconnectionDelay: 20, reconnectionDelayMax: 50 };

const seen = [];
const plain = (value) => {
  if (Buffer.isBuffer(value) || value instanceof Uint8Array) return { bytes: [...value] };
  if (Array.isArray(value)) return value.map(plain);
  if (value !== null && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, plain(inner)]));
  }
  return value;
};
const note = (...what) => seen.push(plain(what));

const opened = async (socket) => {
  const [auth] = await once(socket, "welcome");
  const { engine } = socket.io;
  if (how === "upgrade" && engine.transport.name === "polling") await once(engine, "upgrade");
  return auth;
};

const socket = io(url, { ...options, auth: { token: "abc" } });
note("welcome", await opened(socket));
note("transport", socket.io.engine.transport.name);

const back = once(socket, "echo-back");
socket.emit("echo", 1, "two", { three: [true, null] }, "ü😀");
note("echo-back", ...(await back));
const bytesBack = once(socket, "echo-back");
socket.emit("echo", Buffer.from([1, 2, 3]), { deep: [Buffer.from([])] });
note("echo-back", ...(await bytesBack));
const long = "x".repeat(200_000);
const longBack = once(socket, "echo-back");
socket.emit("echo", long);
note("long", (await longBack)[0] === long);

note("acknowledged", await socket.emitWithAck("echo", { a: 1 }));
note("acknowledged", await socket.emitWithAck("echo", Buffer.from([7])));
socket.on("question", (number, bytes, answer) => answer("answer", number, bytes));
const told = once(socket, "you-said");
socket.emit("ask-me");
note("you-said", ...(await told));

const many = [];
socket.on("number", (number) => many.push(number));
note("numbers", await socket.emitWithAck("count-to", 500), many.length === 500, many.every((n, i) => n === i));

const other = io(url, options);
note("welcome", await opened(other));
const heard = [];
for (const [name, each] of [["first", socket], ["second", other]]) {
  each.on("said", (text) => heard.push([name, text]));
  await each.emitWithAck("join", "room");
}
await socket.emitWithAck("say", "room", "to all");
await other.emitWithAck("say-to-others", "room", "to the first");
await other.emitWithAck("leave", "room");
await socket.emitWithAck("say", "room", "to who is left");
await other.emitWithAck("echo");
note("heard", heard.sort());

const refused = io(`${url}/admin`, { ...options, auth: { token: "wrong" } });
const [error] = await once(refused, "connect_error");
note("refused", error.message, error.data);
refused.close();
const unknown = io(`${url}/unknown`, options);
note("unknown", (await once(unknown, "connect_error"))[0].message);
unknown.close();

// Two namespaces over one connection.
const admin = socket.io.socket("/admin", { auth: { token: "open" } });
note("admin", ...(await once(admin, "greeting")));
const put = once(admin, "disconnect");
admin.emit("put-me-out");
note("put out", (await put)[0], socket.connected);
other.close();

const lost = once(socket, "disconnect");
const again = once(socket, "welcome");
process.stdout.write("now\n");
// By polling it may learn from its next poll only, which is an error then.
note("lost", (await lost)[0].replace("error", "close"));
note("welcome", ...(await again));
note("acknowledged", await socket.emitWithAck("echo", "again"));
socket.close();
process.stdout.write(`${JSON.stringify(seen)}\n`, () => process.exit(0));
