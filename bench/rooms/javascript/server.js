// Socket.IO as its documentation shows it, on the engine that the first argument names; bench/rooms/__init__.py tells
// what it is asked and what it answers.
"use strict";

const readline = require("node:readline");
const { Server } = require("socket.io");

const ROOM = "room";
// Timers are that coarse: an event that comes later than this is late because the server was busy.
const TIMER_NS = 2_000_000n;

const engines = {
  default(io, listening) {
    const server = require("node:http").createServer();
    io.attach(server);
    server.listen(0, "127.0.0.1", () => listening(server.address().port));
  },
  uws(io, listening) {
    const uws = require("uWebSockets.js");
    const app = uws.App();
    io.attachApp(app);
    app.listen("127.0.0.1", 0, (socket) => listening(uws.us_socket_local_port(socket)));
  },
};

const answer = (value) => process.stdout.write(JSON.stringify(value) + "\n");
const clock = () => process.hrtime.bigint();

const io = new Server();
io.on("connection", (socket) => {
  socket.join(ROOM);
});

function emit(number, at) {
  io.to(ROOM).emit("event", {
    mark: `#${String(number).padStart(8, "0")}@${String(at).padStart(20, "0")}`,
    text: process.env.BENCH_TEXT,
  });
}

const commands = {
  collect() {
    global.gc();
    answer({});
  },

  connections() {
    answer({ open: io.engine.clientsCount });
  },

  burst(events, perTurn) {
    const began = clock();
    let number = 0;
    const turn = () => {
      const end = Math.min(number + perTurn, events);
      while (number < end) emit(number++, clock());
      if (number < events) setImmediate(turn);
      else answer({ began_ns: Number(began) });
    };
    turn();
  },

  paced(perSecond, events) {
    const period = 1_000_000_000n / BigInt(perSecond);
    const began = clock();
    let number = 0;
    const turn = () => {
      const now = clock();
      const due = began + BigInt(number) * period;
      emit(number++, now - due > TIMER_NS ? due : now);
      if (number === events) return answer({ began_ns: Number(began) });
      const rest = began + BigInt(number) * period - clock();
      setTimeout(turn, Math.max(0, Number(rest) / 1e6));
    };
    turn();
  },
};

readline
  .createInterface({ input: process.stdin })
  .on("line", (line) => {
    const [name, ...numbers] = line.split(" ");
    commands[name](...numbers.map(Number));
  })
  .on("close", () => process.exit(0));

engines[process.argv[2]](io, (port) => answer({ port }));
