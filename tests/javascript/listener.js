// A listener of the chat, as a browser would be one: it does what lines of JSON on standard input say, and tells what
// happens to it by lines of JSON on standard output.
//
//   node listener.js URL OPTIONS       (the options of socket.io-client, as JSON)

import { createInterface } from "node:readline";
import { io } from "socket.io-client";

const [url, options] = process.argv.slice(2);
const socket = io(url, JSON.parse(options));

const tell = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);

socket.onAny((...event) => tell({ event }));
socket.on("connect", () => tell({ connected: { recovered: Boolean(socket.recovered) } }));
socket.on("connect_error", (error) => tell({ refused: error.message }));
socket.on("disconnect", (reason) => tell({ disconnected: reason }));

const commands = {
  emit: (event) => socket.emit(...event),
  call: (event) => socket.emit(...event, (...acknowledged) => tell({ acknowledged })),
};

createInterface({ input: process.stdin })
  .on("line", (line) => Object.entries(JSON.parse(line)).forEach(([name, argument]) => commands[name](argument)))
  .on("close", () => process.exit(0));
