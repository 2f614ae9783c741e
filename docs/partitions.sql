-- Turns the table of tasks into one with 16 hash partitions, in one transaction. Requests wait
-- meanwhile, so stop the service first if the table is large. Needs PostgreSQL 11 or newer.
BEGIN;
DO $$
BEGIN
  IF EXISTS (
    SELECT FROM pg_class
      WHERE oid = 'task'::regclass AND (relrowsecurity OR relhasrules OR relreplident <> 'd')
    UNION ALL
    -- Also a publication of all tables, or of all in a schema.
    SELECT FROM pg_publication_tables
      JOIN pg_namespace ON nspname = schemaname
      JOIN pg_class ON relnamespace = pg_namespace.oid AND relname = tablename
      WHERE pg_class.oid = 'task'::regclass
    UNION ALL
    -- Also those of foreign keys.
    SELECT FROM pg_trigger WHERE tgrelid = 'task'::regclass
  ) THEN
    RAISE 'task has triggers, foreign keys, rules, row-level security, a publication or a replica'
      ' identity, which its copy would lose';
  END IF;
  -- Otherwise, the new table would be in the first schema of the search_path, such as the user's.
  PERFORM set_config('search_path', relnamespace::regnamespace::text, true)
    FROM pg_class WHERE oid = 'task'::regclass;
END
$$;
ALTER TABLE task RENAME TO task_whole;
CREATE TABLE task (LIKE task_whole INCLUDING ALL) PARTITION BY HASH (user_id);
DO $$
BEGIN
  FOR i IN 0..15 LOOP
    EXECUTE format(
      'CREATE TABLE task_%s PARTITION OF task FOR VALUES WITH (MODULUS 16, REMAINDER %s)', i, i
    );
  END LOOP;
END
$$;
INSERT INTO task SELECT * FROM task_whole;
DROP TABLE task_whole;
COMMIT;
