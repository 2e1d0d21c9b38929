// A vendor's backend behind spigate, for every form of `send`. Node, no packages.
//
// Run: node backend.mjs [port]

import { randomBytes, randomUUID } from "node:crypto";
import { createServer } from "node:http";

const instances = new Map(); // A real backend has a database for both.
const answered = new Map(); // Idempotency-Key -> the answer that was given

function create(action, order) {
  const instanceId = `ins-${randomUUID()}`;
  instances.set(instanceId, { order, state: "running" });
  const [username, password, url] = ["admin", randomBytes(12).toString("base64url"), "https://crm.example.com"];
  if (action === "CreateInstance") {
    const instanceInfo = { frontEndUrl: url, adminUrl: url, username, password };
    return { success: true, instanceId, instanceInfo };
  }
  return { success: true, instanceId, appInfo: { frontEnd: { url, username, password } } };
}

// What the platform is told.
function answer(action, order) {
  if (action === "TestConnection") return { success: true };
  if (action.startsWith("Create")) return create(action, order);
  const instance = instances.get(order.instance_id);
  // Expire and delete can come anew under a known Idempotency-Key (journal off, or lost): never skip
  // them because the key is known, make them harmless to repeat.
  if (action.startsWith("Expire")) {
    if (instance) instance.state = "expired";
    return { success: true };
  }
  if (action.startsWith("Delete")) {
    instances.delete(order.instance_id);
    return { success: true };
  }
  if (!instance) return { success: false, message: "no such instance" };
  if (/^(Renew|Upgrade)/.test(action)) {
    Object.assign(instance, { order, state: "running" });
    return { success: true };
  }
  return { success: false, message: "unknown action" };
}

// The order. A real backend has only the form that its configuration says.
async function read(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  if (request.method === "POST") return JSON.parse(Buffer.concat(chunks).toString("utf8")); // send = "json"
  const order = Object.fromEntries(new URL(request.url, "http://backend").searchParams); // "query", "raw"
  for (const [name, value] of Object.entries(request.headers)) {
    const field = name.match(/^x-spi-param-(.*)/)?.[1]; // "headers"
    if (field) order[field.replaceAll("-", "_")] = decodeURIComponent(value);
  }
  return order;
}

const server = createServer(async (request, response) => {
  const order = await read(request);
  const { "x-spi-action": action, "idempotency-key": key } = request.headers;
  let reply = answered.get(key);
  if (!reply) {
    reply = answer(action, order);
    if (reply.success && /^(Create|Renew|Upgrade)/.test(action)) answered.set(key, reply);
  }
  const body = JSON.stringify(reply);
  response.writeHead(200, { "Content-Type": "application/json", "Content-Length": Buffer.byteLength(body) });
  response.end(body);
});

server.listen(Number(process.argv[2] ?? 9000), "127.0.0.1");
