// Fastify + node-postgres, as their documentation puts them together: a JSON schema for what comes
// in and one for what goes out, a pool, and node:cluster for two processes.

import cluster from 'node:cluster'
import Fastify from 'fastify'
import pg from 'pg'

const task = {
  type: 'object',
  properties: {
    id: { type: 'string' },
    user_id: { type: 'string' },
    title: { type: 'string' },
    description: { type: 'string', nullable: true },
    completed: { type: 'boolean' },
    created_at: { type: 'string', format: 'date-time' },
    updated_at: { type: 'string', format: 'date-time' },
    priority: { type: 'string' },
    due_date: { type: 'string', nullable: true },
    tags: { type: 'array', items: { type: 'string' } },
    completed_at: { type: 'string', format: 'date-time', nullable: true }
  }
}
const update = {
  type: 'object',
  properties: {
    title: { type: 'string', minLength: 1, maxLength: 500 },
    description: { type: 'string', nullable: true, maxLength: 5000 },
    completed: { type: 'boolean' },
    priority: { type: 'string', minLength: 1, maxLength: 20 },
    due_date: { type: 'string', format: 'date', nullable: true },
    tags: { type: 'array', maxItems: 20, items: { type: 'string', maxLength: 50 } }
  }
}
const create = { ...update, required: ['title'] }
const message = { type: 'object', properties: { message: { type: 'string' } } }
const user = { type: 'object', properties: { user_id: { type: 'string', maxLength: 255 } } }
const one = {
  type: 'object',
  properties: { ...user.properties, task_id: { type: 'string', format: 'uuid' } }
}
const words = { type: 'array', items: { type: 'string' } }
const sortKeys = {
  created: 'created_at',
  updated: 'updated_at',
  title: 'lower(title)',
  due_date: 'due_date',
  priority: "CASE priority WHEN 'low' THEN 1 WHEN 'high' THEN 3 WHEN 'urgent' THEN 4 ELSE 2 END"
}
const list = {
  type: 'object',
  properties: {
    status: { type: 'string', enum: ['all', 'pending', 'completed'], default: 'all' },
    priority: words,
    tag: words,
    due_date_from: { type: 'string', format: 'date' },
    due_date_to: { type: 'string', format: 'date' },
    search: { type: 'string', maxLength: 200 },
    sort: { type: 'string', enum: Object.keys(sortKeys), default: 'created' },
    order: { type: 'string', enum: ['asc', 'desc'], default: 'asc' }
  }
}
const fields = 'id, user_id, title, description, completed, created_at, updated_at, ' +
  'priority, due_date, tags, completed_at'
pg.types.setTypeParser(pg.types.builtins.DATE, (text) => text) // Not a Date in the local time zone.

function selectTasks (userId, query) {
  const values = [userId]
  const where = ['user_id = $1']
  const add = (condition, value) => where.push(condition.replaceAll('?', `$${values.push(value)}`))
  if (query.status !== 'all') add('completed = ?', query.status === 'completed')
  if (query.priority) add('priority = ANY(?)', query.priority)
  if (query.tag) add('tags @> ?', query.tag)
  if (query.due_date_from) add('due_date >= ?', query.due_date_from)
  if (query.due_date_to) add('due_date <= ?', query.due_date_to)
  if (query.search) {
    const words = query.search.replace(/[\\%_]/g, '\\$&')
    add('(title ILIKE ? OR description ILIKE ?)', `%${words}%`)
  }
  const text = `SELECT ${fields} FROM peer_task WHERE ${where.join(' AND ')}
    ORDER BY ${sortKeys[query.sort]} ${query.order} NULLS LAST`
  return [text, values]
}

const withoutRepetitions = (tags) =>
  [...new Set(tags.map((tag) => tag.trim()).filter((tag) => tag))]

async function serve () {
  const fastify = Fastify({ logger: process.env.LOG !== 'off' })
  const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL })

  async function first (reply, text, values) {
    const { rows } = await pool.query(text, values)
    return rows.length ? rows[0] : reply.code(404).send({ message: 'Task not found' })
  }

  fastify.get('/health', async () => ({ status: 'ok' }))

  fastify.get(
    '/api/:user_id/tasks',
    {
      schema: {
        params: user, querystring: list, response: { 200: { type: 'array', items: task } }
      }
    },
    async (request) => {
      const { rows } = await pool.query(...selectTasks(request.params.user_id, request.query))
      return rows
    }
  )

  fastify.post(
    '/api/:user_id/tasks',
    { schema: { params: user, body: create, response: { 201: task } } },
    async (request, reply) => {
      const {
        title, description = null, completed = false,
        priority = 'medium', due_date: dueDate = null, tags = []
      } = request.body
      const { rows } = await pool.query(
        `INSERT INTO peer_task (${fields})
         VALUES (gen_random_uuid(), $1, $2, $3, $4, now(), now(), $5, $6, $7,
           CASE WHEN $4 THEN now() END)
         RETURNING ${fields}`,
        [
          request.params.user_id, title, description, completed,
          priority, dueDate, withoutRepetitions(tags)
        ]
      )
      return reply.code(201).send(rows[0])
    }
  )

  fastify.get(
    '/api/:user_id/tasks/:task_id',
    { schema: { params: one, response: { 200: task } } },
    (request, reply) => first(
      reply,
      `SELECT ${fields} FROM peer_task WHERE user_id = $1 AND id = $2`,
      [request.params.user_id, request.params.task_id]
    )
  )

  fastify.put(
    '/api/:user_id/tasks/:task_id',
    { schema: { params: one, body: update, response: { 200: task } } },
    (request, reply) => {
      const body = request.body
      if ('tags' in body) body.tags = withoutRepetitions(body.tags)
      const names = Object.keys(update.properties).filter((name) => name in body)
      let changes = names.map((name, n) => `${name} = $${n + 3}, `).join('')
      if ('completed' in body) {
        changes += body.completed
          ? 'completed_at = coalesce(completed_at, now()), '
          : 'completed_at = NULL, '
      }
      return first(
        reply,
        `UPDATE peer_task SET ${changes} updated_at = now()
         WHERE user_id = $1 AND id = $2 RETURNING ${fields}`,
        [request.params.user_id, request.params.task_id, ...names.map((name) => body[name])]
      )
    }
  )

  fastify.patch(
    '/api/:user_id/tasks/:task_id/complete',
    { schema: { params: one, response: { 200: task } } },
    (request, reply) => first(
      reply,
      `UPDATE peer_task SET completed = NOT completed, updated_at = now(),
         completed_at = CASE WHEN NOT completed THEN now() END
       WHERE user_id = $1 AND id = $2 RETURNING ${fields}`,
      [request.params.user_id, request.params.task_id]
    )
  )

  fastify.delete(
    '/api/:user_id/tasks/:task_id',
    { schema: { params: one, response: { 200: message } } },
    async (request, reply) => {
      const { rowCount } = await pool.query(
        'DELETE FROM peer_task WHERE user_id = $1 AND id = $2',
        [request.params.user_id, request.params.task_id]
      )
      const text = rowCount ? 'Task deleted successfully' : 'Task not found'
      return reply.code(rowCount ? 200 : 404).send({ message: text })
    }
  )

  await fastify.listen({ port: Number(process.env.PEER_PORT), host: '127.0.0.1' })
}

if (cluster.isPrimary) {
  for (let n = 0; n < 2; n++) cluster.fork()
  process.on('SIGTERM', () => process.exit(0))
} else {
  process.on('disconnect', () => process.exit(0))
  await serve()
}
