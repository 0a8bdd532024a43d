-- Tokens that nobody can guess, whatever gives them out, and no backup brings back: 56 random bits.
CREATE FUNCTION incident_hpo.random_token_v1() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NEW.token IS NOT NULL AND (TG_OP = 'INSERT' OR NEW.token IS DISTINCT FROM OLD.token) THEN
        NEW.token := ('x' || left(replace(gen_random_uuid()::text, '-', ''), 15))::bit(60)::bigint;
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER random_token BEFORE INSERT OR UPDATE OF token ON incident_hpo.leases
FOR EACH ROW EXECUTE FUNCTION incident_hpo.random_token_v1();

-- What people may see of a token: that there is one.
ALTER TABLE incident_hpo.leases ADD COLUMN is_ours bool GENERATED ALWAYS AS (token IS NOT NULL) STORED;

ALTER FUNCTION incident_hpo.changes_v1(int, int, int[], int[], bool, int) SECURITY DEFINER;
ALTER FUNCTION incident_hpo.save_v1(int, bigint, json, text) SECURITY INVOKER;


-- save_v1 for whoever holds the trial: without a token, as the owner may write to a trial that nobody holds, it is 'lost'.
CREATE FUNCTION incident_hpo.save_leased_v1(p_trial int, p_token bigint, p_contents json, p_state text)
RETURNS TABLE (verdict text, study int) LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.verdict, s.study FROM incident_hpo.save_v1(p_trial, coalesce(p_token, 0), p_contents, p_state) s
$$;


-- When a worker came, or came back after a lease of silence. IF NOT EXISTS and OR REPLACE from here on, as some databases
-- of version 7 have it already.
ALTER TABLE incident_hpo.workers ADD COLUMN IF NOT EXISTS back timestamptz NOT NULL DEFAULT clock_timestamp();


-- As before, and notes when a worker comes.
CREATE OR REPLACE FUNCTION incident_hpo.register_v1(p_worker text, p_study int, p_host text, p_slot text, p_device text, p_launch text)
RETURNS bool LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    drained bool := EXISTS (SELECT FROM incident_hpo.workers w WHERE w.launch = p_launch AND w.drain);
BEGIN
    DELETE FROM incident_hpo.workers WHERE seen < clock_timestamp() - interval '30 days';
    INSERT INTO incident_hpo.workers (worker, study_id, host, slot, device, launch, drain)
    VALUES (p_worker, p_study, p_host, p_slot, p_device, p_launch, drained)
    ON CONFLICT (worker) DO UPDATE SET study_id = excluded.study_id, host = excluded.host, slot = excluded.slot,
        device = excluded.device, launch = excluded.launch, began = excluded.began, seen = excluded.seen,
        back = excluded.back, drain = excluded.drain, ended = NULL;
    RETURN drained;
END $$;


-- As before, and notes when a worker comes back.
CREATE OR REPLACE FUNCTION incident_hpo.sign_v1(p_worker text)
RETURNS bool LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    drained bool;
BEGIN
    UPDATE incident_hpo.workers w SET seen = clock_timestamp(),
        back = CASE WHEN w.seen < clock_timestamp() - s.lease THEN clock_timestamp() ELSE w.back END
    FROM incident_hpo.studies s WHERE w.worker = p_worker AND s.study_id = w.study_id RETURNING w.drain INTO drained;
    RETURN drained;
END $$;


-- For how long the worker has been there without a lease of silence, at most p_connected_s. It knows how long its
-- connections hold when it sends; what it sent before it was cut off may arrive much later, and must not sweep.
CREATE OR REPLACE FUNCTION incident_hpo.steady_s_v1(p_worker text, p_connected_s float8)
RETURNS float8 LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce((
        SELECT CASE WHEN w.seen < clock_timestamp() - s.lease THEN 0
               ELSE least(p_connected_s, extract(epoch FROM clock_timestamp() - w.back)) END
        FROM incident_hpo.workers w JOIN incident_hpo.studies s ON s.study_id = w.study_id WHERE w.worker = p_worker
    ), p_connected_s)::float8
$$;
