// Better Auth with its JWT plugin and a database in memory, on a free port of 127.0.0.1. It obeys the
// commands on its standard input, and answers each with a line.

import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { betterAuth } from "better-auth";
import { memoryAdapter } from "better-auth/adapters/memory";
import { toNodeHandler } from "better-auth/node";
import { jwt } from "better-auth/plugins";

const tables = { user: [], session: [], account: [], verification: [], jwks: [] };
const server = createServer((request, response) => handle(request, response));
const listen = (port) =>
  new Promise((resolve) => server.listen(port, "127.0.0.1", () => resolve(server.address().port)));

const port = await listen(0);
const handle = toNodeHandler(
  betterAuth({
    // With a path, as many set it: tokens have the origin alone.
    baseURL: `http://127.0.0.1:${port}/api/auth`,
    secret: "a secret of the tests, of 32 bytes or more",
    database: memoryAdapter(tables),
    emailAndPassword: { enabled: true },
    plugins: [jwt()],
  }),
);

const commands = {
  // As the plugin's rotationInterval does it: the next token makes a key, and the old one stays.
  rotate: () => tables.jwks.forEach((key) => (key.expiresAt = new Date(Date.now() - 1000))),
  start: () => listen(port),
  stop: () =>
    new Promise((resolve) => {
      server.close(resolve);
      server.closeAllConnections();
    }),
};

console.log(port);
for await (const line of createInterface({ input: process.stdin })) {
  await commands[line]();
  console.log("done");
}
process.exit();
