// A client of the task API. The OpenAPI document gives paths, parameters, bodies and errors their types.
import createClient, { type Client } from "openapi-fetch";
import type { components, operations, paths } from "./schema.js";

export type Task = components["schemas"]["Task"];
export type Problem = components["schemas"]["Problem"];
export type TaskQuery = NonNullable<operations["listTasks"]["parameters"]["query"]>;

export function connect(baseUrl: string, token?: string): Client<paths> {
  return createClient<paths>({
    baseUrl,
    headers: token ? { Authorization: `Bearer ${token}` } : {},
  });
}

// The data of a successful answer. Throws the server's detail otherwise.
export function dataOf<Data>(answer: { data?: Data; error?: Problem; response: Response }): Data {
  if (answer.data === undefined) {
    throw new Error(`${answer.response.status}: ${answer.error?.detail ?? "no answer to read"}`);
  }
  return answer.data;
}

// Every task of a list, page after page: follows the `Link` header.
export async function* allTasks(
  client: Client<paths>,
  user_id: string,
  query: TaskQuery,
): AsyncGenerator<Task> {
  const { offset, ...rest } = query; // It must not be sent with a cursor.
  let page: TaskQuery | null = query;
  while (page !== null) {
    const answer = await client.GET("/api/{user_id}/tasks", {
      params: { path: { user_id }, query: page },
    });
    yield* dataOf(answer);
    const cursor = nextCursor(answer.response);
    page = cursor === null ? null : { ...rest, cursor };
  }
}

function nextCursor(response: Response): string | null {
  const next = /<([^>]*)>; rel="next"/.exec(response.headers.get("Link") ?? "")?.[1];
  return next === undefined ? null : new URL(next, response.url).searchParams.get("cursor");
}
