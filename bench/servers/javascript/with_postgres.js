// The three endpoints on Node's own HTTP server with pg: a pool, and a statement a request, prepared and committed by
// itself. Accounts, channels and members are read once, at the start. The statements and the pool's size come by the
// environment; where the database is comes by the variables that pg reads itself.
"use strict";

const http = require("node:http");
const { Pool, types } = require("pg");

const { pool: POOL, ...STATEMENTS } = JSON.parse(process.env.MINUTEBOOK_BENCH_STATEMENTS);
const TEXT = (value) => typeof value === "string";

types.setTypeParser(types.builtins.INT8, Number);
// As ISO 8601 has it, to the microsecond, without the detour over a Date.
types.setTypeParser(types.builtins.TIMESTAMPTZ, (text) => text.replace(" ", "T").replace("+00", "Z"));

const pool = new Pool({ min: POOL, max: POOL, idleTimeoutMillis: 0, options: "-c TimeZone=UTC" });
const run = (name, values) => pool.query({ name, text: STATEMENTS[name], values });

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const accounts = new Map();
const usernames = new Map();
const channels = new Map();
const members = new Set();

async function readWhatIsKept() {
  for (const { token, account_id, username } of (await run("accounts")).rows) {
    accounts.set(token, account_id);
    usernames.set(account_id, username);
  }
  for (const { name, channel_id } of (await run("channels")).rows) channels.set(name, channel_id);
  for (const { channel_id, account_id } of (await run("members")).rows) members.add(`${channel_id} ${account_id}`);
}

function accountOf(token) {
  const account = accounts.get(token);
  if (account === undefined) throw new Refused(401, "Invalid token!");
  return account;
}

function channelOf(name, account) {
  const channel = channels.get(name);
  if (channel === undefined) throw new Refused(404, "Channel not found!");
  if (!members.has(`${channel} ${account}`)) throw new Refused(401, "You are not in this channel!");
  return channel;
}

function check(isWhole) {
  if (!isWhole) throw new Refused(400, "Bad request!");
}

async function sendMessage({ token, message, channel }) {
  check(TEXT(token) && TEXT(message) && TEXT(channel) && message.length >= 1 && message.length <= 4000);
  const account = accountOf(token);
  await run("insert", [channelOf(channel, account), account, message]);
  return { message: "Message sent!" };
}

async function getChannels({ token }) {
  check(TEXT(token));
  const { rows } = await run("channels_of", [accountOf(token)]);
  return { channels: rows.map(({ name, channel_id }) => ({ channel_name: name, channel_id })) };
}

async function readMessages({ token, name, count }) {
  check(TEXT(token) && TEXT(name) && Number.isInteger(count) && count >= 1 && count <= 1000);
  const { rows } = await run("newest", [channelOf(name, accountOf(token)), count]);
  return {
    messages: rows.reverse().map(({ message_id, sender_id, text, sent_at }) => ({
      message_id,
      sender: usernames.get(sender_id),
      message: text,
      channel: name,
      timestamp: sent_at,
    })),
  };
}

const ENDPOINTS = new Map([
  ["/api/v3/sendmessage/", sendMessage],
  ["/api/v3/getchannels/", getChannels],
  ["/api/v3/readmessagesfromchannel/", readMessages],
]);

function parsed(pieces) {
  try {
    return JSON.parse(Buffer.concat(pieces).toString());
  } catch {
    throw new Refused(400, "Bad request!");
  }
}

function answer(response, status, body) {
  const text = JSON.stringify(body);
  response.writeHead(status, { "Content-Type": "application/json", "Content-Length": Buffer.byteLength(text) });
  response.end(text);
}

async function serve(endpoint, pieces, response) {
  try {
    answer(response, 200, await endpoint(parsed(pieces)));
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    answer(response, error.status, { message: error.message });
  }
}

const server = http.createServer((request, response) => {
  const endpoint = request.method === "POST" ? ENDPOINTS.get(request.url) : undefined;
  if (endpoint === undefined) {
    response.writeHead(404).end();
    return;
  }
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => serve(endpoint, pieces, response));
});

readWhatIsKept().then(() => server.listen(Number(process.argv[2]), "127.0.0.1", 1024));
