-- When a study ends before its trials are used up, or pauses; and what its workers have spent.
ALTER TABLE incident_hpo.studies
    ADD COLUMN hours float8,  -- since it began; NULL: as long as it takes
    ADD COLUMN gpu_hours float8,  -- of all workers together
    ADD COLUMN begun timestamptz,  -- moved on by pauses
    ADD COLUMN paused timestamptz,
    ADD COLUMN ended text,  -- why no trial is started any more
    ADD COLUMN ended_at timestamptz;

ALTER TABLE incident_hpo.leases
    ADD COLUMN since timestamptz,  -- the holder has it
    ADD COLUMN device_s float8 NOT NULL DEFAULT 0;  -- of the runs before

-- Parameters that no other trial of the study may have, be it over: where there are few of them.
CREATE UNIQUE INDEX leases_once ON incident_hpo.leases (study_id, params_hash) WHERE params_hash LIKE 'once:%';


-- Whatever takes or ends a hold on a trial, this counts its time; a holder that fell silent is counted to its lease's end.
CREATE FUNCTION incident_hpo.clock_v1() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF OLD.held AND (NOT NEW.held OR NEW.token IS DISTINCT FROM OLD.token) THEN
            NEW.device_s := OLD.device_s + coalesce(extract(epoch FROM
                greatest(least(clock_timestamp(), OLD.expires), OLD.since) - OLD.since), 0);
        END IF;
        IF OLD.held AND NEW.held AND NEW.token IS NOT DISTINCT FROM OLD.token THEN
            RETURN NEW;
        END IF;
    END IF;
    NEW.since := CASE WHEN NEW.held THEN clock_timestamp() END;
    RETURN NEW;
END $$;

CREATE TRIGGER clock BEFORE INSERT OR UPDATE OF held ON incident_hpo.leases
FOR EACH ROW EXECUTE FUNCTION incident_hpo.clock_v1();


-- Budget, lease and times of a study, in seconds; no row for one that the service does not run.
CREATE FUNCTION incident_hpo.terms_v1(p_study int)
RETURNS TABLE (budget int, lease_s float8, paused bool, ended text, elapsed_s float8, device_s float8)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.budget, extract(epoch FROM s.lease)::float8, s.paused IS NOT NULL, s.ended,
        coalesce(extract(epoch FROM coalesce(s.ended_at, s.paused, clock_timestamp()) - s.begun), 0)::float8,
        (SELECT coalesce(sum(l.device_s + coalesce(extract(epoch FROM
                    greatest(least(clock_timestamp(), l.expires), l.since) - l.since), 0)), 0)
         FROM incident_hpo.leases l WHERE l.study_id = p_study)::float8
    FROM incident_hpo.studies s WHERE s.study_id = p_study
$$;


-- As claim_v1, for a study that may be 'paused' or 'ended'; ends it when its hours are over.
CREATE FUNCTION incident_hpo.claim_v2(p_study int, p_request text, p_worker text, p_connected_s float8)
RETURNS TABLE (verdict text, trial int, token bigint, attempt int)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ours incident_hpo.studies;
    spent record;
BEGIN
    PERFORM FROM public.studies WHERE study_id = p_study FOR NO KEY UPDATE;
    UPDATE incident_hpo.studies SET begun = clock_timestamp() WHERE study_id = p_study AND begun IS NULL;
    SELECT * INTO ours FROM incident_hpo.studies WHERE study_id = p_study;
    IF ours.ended IS NULL AND (ours.hours IS NOT NULL OR ours.gpu_hours IS NOT NULL) THEN
        SELECT * INTO spent FROM incident_hpo.terms_v1(p_study);
        ours.ended := CASE WHEN spent.elapsed_s >= 3600 * ours.hours THEN format('its %s hours are over', ours.hours)
            WHEN spent.device_s >= 3600 * ours.gpu_hours THEN format('its %s GPU-hours are used up', ours.gpu_hours) END;
        UPDATE incident_hpo.studies SET ended = ours.ended, ended_at = clock_timestamp()
        WHERE study_id = p_study AND ours.ended IS NOT NULL;
    END IF;
    IF (ours.ended IS NOT NULL OR ours.paused IS NOT NULL)
       AND NOT EXISTS (SELECT FROM incident_hpo.leases l WHERE l.request = p_request) THEN
        -- Whoever waits takes back the trial of a worker that died meanwhile.
        RETURN QUERY SELECT CASE WHEN ours.ended IS NULL THEN 'paused'
            WHEN EXISTS (SELECT FROM public.trials t WHERE t.study_id = p_study AND t.state = 'RUNNING') THEN 'wait'
            ELSE 'done' END, NULL::int, NULL::bigint, NULL::int;
        RETURN;
    END IF;
    RETURN QUERY SELECT * FROM incident_hpo.claim_v1(p_study, p_request, p_worker, p_connected_s);
END $$;
