// Every operation of the task API, one after another. Each request is printed with its status.
import { randomUUID } from "node:crypto";
import { allTasks, connect, dataOf, type Task, type TaskQuery } from "./client.js";

const user_id = process.env.TASK_API_USER ?? "alice";
const client = connect(
  process.env.TASK_API_URL ?? "http://127.0.0.1:8000",
  process.env.TASK_API_TOKEN,
);
client.use({
  onResponse({ request, response, schemaPath }) {
    console.log(request.method, schemaPath + new URL(request.url).search, response.status);
  },
});

console.log("The server:", dataOf(await client.GET("/health")).status);
console.log("The database:", dataOf(await client.GET("/ready")).status);

// Create. With an Idempotency-Key, a retry returns the same task.
const creation = {
  params: { path: { user_id }, header: { "Idempotency-Key": randomUUID() } },
  body: {
    title: "Buy milk",
    description: "Two bottles",
    priority: "high",
    due_date: "2026-01-31",
    tags: ["home", "shop"],
  },
};
const task = dataOf(await client.POST("/api/{user_id}/tasks", creation));
const replay = await client.POST("/api/{user_id}/tasks", creation);
console.log("Created before:", replay.response.headers.get("Idempotent-Replayed"));
console.log("The same task:", dataOf(replay).id === task.id);
const other = dataOf(
  await client.POST("/api/{user_id}/tasks", {
    params: { path: { user_id } },
    body: { title: "Buy more milk", due_date: "2026-01-31T09:30", tags: "home, later" },
  }),
);
console.log("Stored:", other.priority, other.due_date, other.tags);

// List, with one task per page.
const query: TaskQuery = {
  status: "pending",
  search: "MILK",
  tags: ["home", "work"],
  sort: "title",
  order: "desc",
  limit: 1,
  offset: 0,
};
for await (const { title, description } of allTasks(client, user_id, query)) {
  console.log("To do:", title, description?.toUpperCase() ?? "(no description)");
}

// List what is due in a month. All values of `tag` must match, and any of `priority` or `tags`.
const due = await client.GET("/api/{user_id}/tasks", {
  params: {
    path: { user_id },
    query: {
      completed: "false",
      priority: ["high", "urgent"],
      tag: ["home", "shop"],
      due_date_from: "2026-01-01",
      due_date_to: "2026-01-31",
    },
  },
});
console.log("Due:", titles(dataOf(due)));

// The same list in the words of other clients: aliases of parameters, and tags with commas.
for (const search of [
  "status=active&sort_by=due_date&sort_order=asc",
  "search=more",
  "tags=shop,later",
  "priority=high",
]) {
  const found = await client.GET("/api/{user_id}/tasks", {
    params: { path: { user_id } },
    querySerializer: () => search,
  });
  console.log(`${search}:`, titles(dataOf(found)));
}

// Read, then read again only if the task has changed: a 304 has neither data nor an error.
const path = { user_id, task_id: task.id };
const read = await client.GET("/api/{user_id}/tasks/{task_id}", { params: { path } });
const etag = read.response.headers.get("ETag") ?? "";
const unchanged = await client.GET("/api/{user_id}/tasks/{task_id}", {
  params: { path, header: { "If-None-Match": etag } },
});
console.log("Unchanged:", unchanged.response.status === 304);

// Update, unless another client has changed the task: an old ETag gets a 412.
const change = { params: { path, header: { "If-Match": etag } }, body: { title: "Buy oat milk" } };
console.log("Now:", dataOf(await client.PUT("/api/{user_id}/tasks/{task_id}", change)).title);
const late = await client.PUT("/api/{user_id}/tasks/{task_id}", change);
console.log("Too late:", late.error?.detail);

// Update some fields with a JSON merge patch, in which null clears a field.
const patched = await client.PATCH("/api/{user_id}/tasks/{task_id}", {
  params: { path },
  headers: { "Content-Type": "application/merge-patch+json" },
  body: { description: null, due_date: null },
});
console.log("No description:", dataOf(patched).description === null);

// Complete: an empty body toggles; `completed` sets, which is safe to retry.
const flipped = await client.PATCH("/api/{user_id}/tasks/{task_id}/complete", { params: { path } });
console.log("Completed:", dataOf(flipped).completed, dataOf(flipped).completed_at !== null);
const set = await client.PATCH("/api/{user_id}/tasks/{task_id}/complete", {
  params: { path },
  body: { completed: true },
});
console.log("Still completed:", dataOf(set).completed);

// An error has a `detail` for people and `errors` for each field.
const invalid = await client.POST("/api/{user_id}/tasks", {
  params: { path: { user_id } },
  body: { title: "" },
});
console.log("Refused:", invalid.error?.detail, invalid.error?.errors?.title);

// Delete all completed tasks, find one of them in the trash, and restore it.
const completed = { params: { path: { user_id } } };
const cleared = dataOf(await client.DELETE("/api/{user_id}/tasks/completed/clear", completed));
console.log("Cleared:", cleared.deleted);
const trash = await client.GET("/api/{user_id}/tasks/deleted", {
  params: { path: { user_id }, query: { limit: 1 } },
});
console.log("In the trash:", dataOf(trash)[0]?.id === task.id, dataOf(trash)[0]?.deleted_at !== "");
const restored = await client.POST("/api/{user_id}/tasks/{task_id}/restore", { params: { path } });
console.log("Restored:", dataOf(restored).title);

// Delete both tasks.
for (const task_id of [task.id, other.id]) {
  const deletion = { params: { path: { user_id, task_id } } };
  console.log(dataOf(await client.DELETE("/api/{user_id}/tasks/{task_id}", deletion)).message);
}
const gone = await client.DELETE("/api/{user_id}/tasks/{task_id}", { params: { path } });
console.log("Gone:", gone.error?.detail);

function titles(tasks: Task[]): string {
  return tasks.map(({ title }) => title).join(", ");
}
