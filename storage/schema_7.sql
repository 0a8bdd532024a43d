-- Roles. Workers read tables and write through functions alone, which run with the owner's rights; storage/grants.sql says
-- who may call what. Each of these pins its search_path.
ALTER FUNCTION incident_hpo.claim_v2(int, text, text, float8) SECURITY DEFINER;
ALTER FUNCTION incident_hpo.changes_v1(int, int, int[], int[], bool, int) SECURITY DEFINER;
ALTER FUNCTION incident_hpo.release_v1(int, bigint, text) SECURITY DEFINER;
ALTER FUNCTION incident_hpo.renew_v1(int, bigint) SECURITY DEFINER;
ALTER FUNCTION incident_hpo.resumed_v1(int, bigint, int) SECURITY DEFINER;
ALTER FUNCTION incident_hpo.sweep_v1(int, float8) SECURITY DEFINER;
ALTER FUNCTION incident_hpo.register_v1(text, int, text, text, text, text) SECURITY DEFINER;
ALTER FUNCTION incident_hpo.sign_v1(text) SECURITY DEFINER;
ALTER FUNCTION incident_hpo.leave_v1(text, int) SECURITY DEFINER;


-- save_v1 for whoever holds the trial: without a token, as the owner may write to a trial that nobody holds, it is 'lost'.
CREATE FUNCTION incident_hpo.save_leased_v1(p_trial int, p_token bigint, p_contents json, p_state text)
RETURNS TABLE (verdict text, study int) LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.verdict, s.study FROM incident_hpo.save_v1(p_trial, coalesce(p_token, 0), p_contents, p_state) s
$$;


-- No trial is started any more; the first reason stays.
CREATE FUNCTION incident_hpo.end_v1(p_study int, p_reason text)
RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE incident_hpo.studies SET ended = p_reason, ended_at = clock_timestamp()
    WHERE study_id = p_study AND ended IS NULL
$$;


-- After a restore: whoever held a lease has none. Workers that are still at it are unknown now, and begin anew. How many
-- trials wait.
CREATE FUNCTION incident_hpo.fence_v1()
RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    waiting bigint;
BEGIN
    PERFORM FROM public.studies ORDER BY study_id FOR NO KEY UPDATE;
    PERFORM FROM public.trials WHERE state = 'RUNNING' ORDER BY trial_id FOR NO KEY UPDATE;
    UPDATE incident_hpo.leases l SET held = false, token = incident_hpo.token_v1(), request = NULL,
        writes = writes + 1, attempts = greatest(attempts - 1, 0)
    FROM public.trials t WHERE t.trial_id = l.trial_id AND t.state = 'RUNNING';
    UPDATE public.trials SET state = 'WAITING' WHERE state = 'RUNNING'
    AND study_id IN (SELECT study_id FROM incident_hpo.studies);
    GET DIAGNOSTICS waiting = ROW_COUNT;
    DELETE FROM incident_hpo.workers;
    RETURN waiting;
END $$;
