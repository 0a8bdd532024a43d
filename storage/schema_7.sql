-- Roles. Workers read tables and write through functions alone, which run with the owner's rights; storage/grants.sql says
-- who may call what. Each of these pins its search_path.
ALTER FUNCTION incident_hpo.claim_v2(int, text, text, float8) SECURITY DEFINER;
ALTER FUNCTION incident_hpo.save_v1(int, bigint, json, text) SECURITY DEFINER;
ALTER FUNCTION incident_hpo.release_v1(int, bigint, text) SECURITY DEFINER;
ALTER FUNCTION incident_hpo.renew_v1(int, bigint) SECURITY DEFINER;
ALTER FUNCTION incident_hpo.resumed_v1(int, bigint, int) SECURITY DEFINER;
ALTER FUNCTION incident_hpo.sweep_v1(int, float8) SECURITY DEFINER;
ALTER FUNCTION incident_hpo.register_v1(text, int, text, text, text, text) SECURITY DEFINER;
ALTER FUNCTION incident_hpo.sign_v1(text) SECURITY DEFINER;
ALTER FUNCTION incident_hpo.leave_v1(text, int) SECURITY DEFINER;


-- No trial is started any more; the first reason stays.
CREATE FUNCTION incident_hpo.end_v1(p_study int, p_reason text)
RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE incident_hpo.studies SET ended = p_reason, ended_at = clock_timestamp()
    WHERE study_id = p_study AND ended IS NULL
$$;


-- After a restore: whoever held a lease has none, and no token given out since the backup is given out again, as from here
-- on tokens are microseconds since 1970. Workers that are still at it are unknown now, and begin anew. How many trials wait.
CREATE FUNCTION incident_hpo.fence_v1()
RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    waiting bigint;
BEGIN
    PERFORM FROM public.studies ORDER BY study_id FOR NO KEY UPDATE;
    PERFORM FROM public.trials WHERE state = 'RUNNING' ORDER BY trial_id FOR NO KEY UPDATE;
    PERFORM setval('incident_hpo.tokens', (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
    UPDATE incident_hpo.leases l SET held = false, token = nextval('incident_hpo.tokens'), request = NULL,
        writes = writes + 1, attempts = greatest(attempts - 1, 0)
    FROM public.trials t WHERE t.trial_id = l.trial_id AND t.state = 'RUNNING';
    UPDATE public.trials SET state = 'WAITING' WHERE state = 'RUNNING'
    AND study_id IN (SELECT study_id FROM incident_hpo.studies);
    GET DIAGNOSTICS waiting = ROW_COUNT;
    DELETE FROM incident_hpo.workers;
    RETURN waiting;
END $$;
