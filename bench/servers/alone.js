// The small endpoint of alone.py on Node's own HTTP server.
"use strict";

const http = require("node:http");

const PATH = "/api/v3/sendmessage/";

http
  .createServer((request, response) => {
    if (request.method !== "POST" || request.url !== PATH) {
      response.writeHead(404).end();
      return;
    }
    const pieces = [];
    request.on("data", (piece) => pieces.push(piece));
    request.on("end", () => {
      const body = JSON.parse(Buffer.concat(pieces).toString());
      const isWhole = ["token", "message", "channel"].every((name) => typeof body[name] === "string");
      const answer = JSON.stringify({ message: isWhole ? "Message sent!" : "Bad request!" });
      response.writeHead(isWhole ? 200 : 400, {
        "Content-Type": "application/json; charset=UTF-8",
        "Content-Length": Buffer.byteLength(answer),
      });
      response.end(answer);
    });
  })
  .listen(Number(process.argv[2]), "127.0.0.1", 1024);
