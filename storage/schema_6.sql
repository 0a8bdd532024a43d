-- Who works, for people and for draining a box. No trial depends on it: leases alone say who may write what.
CREATE TABLE incident_hpo.workers (
    worker text PRIMARY KEY,  -- as in leases: host and process
    study_id int NOT NULL REFERENCES public.studies ON DELETE CASCADE,
    host text NOT NULL,
    slot text NOT NULL,  -- its place on the box; whoever is started again in its place has the same
    device text NOT NULL,
    launch text,  -- that started it and starts it again; NULL: started by hand
    began timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen timestamptz NOT NULL DEFAULT clock_timestamp(),
    drain bool NOT NULL DEFAULT false,
    ended int  -- exit code
);


-- A worker that begins; whether it is to leave at once, as its launch was drained. Sent again it is the same.
CREATE FUNCTION incident_hpo.register_v1(p_worker text, p_study int, p_host text, p_slot text, p_device text, p_launch text)
RETURNS bool LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    drained bool := EXISTS (SELECT FROM incident_hpo.workers w WHERE w.launch = p_launch AND w.drain);
BEGIN
    DELETE FROM incident_hpo.workers WHERE seen < clock_timestamp() - interval '30 days';
    INSERT INTO incident_hpo.workers (worker, study_id, host, slot, device, launch, drain)
    VALUES (p_worker, p_study, p_host, p_slot, p_device, p_launch, drained)
    ON CONFLICT (worker) DO UPDATE SET study_id = excluded.study_id, host = excluded.host, slot = excluded.slot,
        device = excluded.device, launch = excluded.launch, began = excluded.began, seen = excluded.seen,
        drain = excluded.drain, ended = NULL;
    RETURN drained;
END $$;


-- A sign of life; whether the worker is to leave. NULL: nobody knows it, as after a restore.
CREATE FUNCTION incident_hpo.sign_v1(p_worker text)
RETURNS bool LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    drained bool;
BEGIN
    UPDATE incident_hpo.workers SET seen = clock_timestamp() WHERE worker = p_worker RETURNING drain INTO drained;
    RETURN drained;
END $$;


CREATE FUNCTION incident_hpo.leave_v1(p_worker text, p_code int)
RETURNS void LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    UPDATE incident_hpo.workers SET seen = clock_timestamp(), ended = p_code WHERE worker = p_worker
$$;


-- One row for each place on a box, by its latest worker: of those heard of within a day, without the ones that have left
-- for good. Counts are of all that worked in that place.
CREATE FUNCTION incident_hpo.workers_v1(p_study int)
RETURNS TABLE (study text, worker text, host text, slot text, device text, trial int, seen_s float8, lease_s float8,
               drain bool, ended int, done bigint, failed bigint, starts bigint)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH recent AS (
        SELECT w.*, row_number() OVER (PARTITION BY w.study_id, w.host, w.slot ORDER BY w.began DESC) AS place
        FROM incident_hpo.workers w
        WHERE (w.study_id = p_study OR p_study IS NULL) AND w.seen > clock_timestamp() - interval '1 day'
    ), spent AS (
        SELECT r.study_id, r.host, r.slot, count(*) FILTER (WHERE t.state NOT IN ('RUNNING', 'WAITING')) AS done,
            count(*) FILTER (WHERE t.state = 'FAIL') AS failed, count(DISTINCT r.worker) AS starts
        FROM recent r
        LEFT JOIN incident_hpo.leases l ON l.study_id = r.study_id AND l.worker = r.worker
        LEFT JOIN public.trials t ON t.trial_id = l.trial_id
        GROUP BY r.study_id, r.host, r.slot
    )
    SELECT s.study_name, r.worker, r.host, r.slot, r.device,
        (SELECT min(t.number) FROM incident_hpo.leases l JOIN public.trials t ON t.trial_id = l.trial_id
         WHERE l.study_id = r.study_id AND l.worker = r.worker AND l.held AND t.state = 'RUNNING'),
        extract(epoch FROM clock_timestamp() - r.seen)::float8, extract(epoch FROM m.lease)::float8, r.drain, r.ended,
        p.done, p.failed, p.starts
    FROM recent r JOIN public.studies s ON s.study_id = r.study_id JOIN incident_hpo.studies m ON m.study_id = r.study_id
    JOIN spent p ON p.study_id = r.study_id AND p.host = r.host AND p.slot = r.slot
    WHERE r.place = 1 AND r.ended IS DISTINCT FROM 0
    ORDER BY r.host, s.study_name, length(r.slot), r.slot
$$;


-- Tells the workers of a host to leave, and whoever their launches would start in their place; how many were there.
CREATE FUNCTION incident_hpo.drain_v1(p_host text)
RETURNS bigint LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH told AS (UPDATE incident_hpo.workers SET drain = true WHERE host = p_host AND ended IS NULL RETURNING worker)
    SELECT count(*) FROM told
$$;
