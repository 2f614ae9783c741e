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
    updated_at: { type: 'string', format: 'date-time' }
  }
}
const update = {
  type: 'object',
  properties: {
    title: { type: 'string', minLength: 1, maxLength: 500 },
    description: { type: 'string', nullable: true, maxLength: 5000 },
    completed: { type: 'boolean' }
  }
}
const create = { ...update, required: ['title'] }
const message = { type: 'object', properties: { message: { type: 'string' } } }
const user = { type: 'object', properties: { user_id: { type: 'string', maxLength: 255 } } }
const one = {
  type: 'object',
  properties: { ...user.properties, task_id: { type: 'string', format: 'uuid' } }
}
const fields = 'id, user_id, title, description, completed, created_at, updated_at'

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
    { schema: { params: user, response: { 200: { type: 'array', items: task } } } },
    async (request) => {
      const { rows } = await pool.query(
        `SELECT ${fields} FROM peer_task WHERE user_id = $1 ORDER BY created_at`,
        [request.params.user_id]
      )
      return rows
    }
  )

  fastify.post(
    '/api/:user_id/tasks',
    { schema: { params: user, body: create, response: { 201: task } } },
    async (request, reply) => {
      const { title, description = null, completed = false } = request.body
      const { rows } = await pool.query(
        `INSERT INTO peer_task (${fields})
         VALUES (gen_random_uuid(), $1, $2, $3, $4, now(), now()) RETURNING ${fields}`,
        [request.params.user_id, title, description, completed]
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
      const names = Object.keys(update.properties).filter((name) => name in request.body)
      const changes = names.map((name, n) => `${name} = $${n + 3}, `).join('')
      return first(
        reply,
        `UPDATE peer_task SET ${changes} updated_at = now()
         WHERE user_id = $1 AND id = $2 RETURNING ${fields}`,
        [request.params.user_id, request.params.task_id, ...names.map((name) => request.body[name])]
      )
    }
  )

  fastify.patch(
    '/api/:user_id/tasks/:task_id/complete',
    { schema: { params: one, response: { 200: task } } },
    (request, reply) => first(
      reply,
      `UPDATE peer_task SET completed = NOT completed, updated_at = now()
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
