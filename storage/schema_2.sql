-- Attempts are counted as long as a trial gets no farther: one that goes on from a later checkpoint than ever before
-- is not to blame for what cut it short.
ALTER TABLE incident_hpo.leases ADD COLUMN reached int NOT NULL DEFAULT 0;  -- examples seen where a run went on from


CREATE FUNCTION incident_hpo.resumed_v1(p_trial int, p_token bigint, p_examples int)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM public.trials WHERE trial_id = p_trial FOR NO KEY UPDATE;
    UPDATE incident_hpo.leases SET attempts = 1, reached = p_examples
    WHERE trial_id = p_trial AND token = p_token AND held AND reached < p_examples;  -- guard: fence
END $$;
