-- The service's own schema beside Optuna's tables in `public`, version 1. Its name is one that no role is likely to have:
-- PostgreSQL looks up unqualified names, such as Optuna's, in the schema named as the role first.
--
-- Three rules make everything here safe:
--   1. Trials of a study are created under a lock on its row in `studies`, the one that RDBStorage takes too: numbers are
--      unique and contiguous, and the order of ids is the order of commits.
--   2. All that concerns one trial (state, contents, lease) changes under a lock on its row in `trials`, and is read
--      again after the lock was had: a statement's snapshot is older than the lock it waited for.
--   3. Time is the server's clock_timestamp(), as timestamptz: no worker's clock or time zone takes part.
--
-- Names are qualified and search_path is pinned, so nothing depends on the session (PgBouncer in transaction mode).
-- Functions carry the schema's version in their names: code of another version finds nothing to call.

CREATE SCHEMA incident_hpo;

CREATE TABLE incident_hpo.version (
    version int NOT NULL,
    made_by text NOT NULL,  -- what to install to work with it
    only_row bool PRIMARY KEY DEFAULT true CHECK (only_row)
);

-- Studies that this service runs. Trials of any other study are neither fenced nor swept.
CREATE TABLE incident_hpo.studies (
    study_id int PRIMARY KEY REFERENCES public.studies ON DELETE CASCADE,
    budget int NOT NULL CHECK (budget >= 0),  -- outcomes to record
    lease interval NOT NULL CHECK (lease > interval '0')
);

CREATE SEQUENCE incident_hpo.tokens;

-- A trial that was made or claimed by us. Without ON DELETE CASCADE, RDBStorage could not delete a study.
CREATE TABLE incident_hpo.leases (
    trial_id int PRIMARY KEY REFERENCES public.trials ON DELETE CASCADE,
    study_id int NOT NULL REFERENCES public.studies ON DELETE CASCADE,
    held bool NOT NULL,
    expires timestamptz NOT NULL,
    token bigint,  -- the fence: of the last holder; NULL for one who runs the trial without a lease (RDBStorage)
    told bigint,  -- of the holder that recorded the present state, so that a tell sent twice is one tell
    request text UNIQUE,  -- of the last claim, so that a claim sent twice is one claim
    worker text,
    attempts int NOT NULL DEFAULT 0,
    writes int NOT NULL DEFAULT 0,  -- of anything but reports, so that caches re-read only what changed
    params_hash text,
    last_report int  -- of a holder without a lease: it lives while it reports
) WITH (fillfactor = 50);  -- renewals find room on their page

CREATE UNIQUE INDEX leases_held ON incident_hpo.leases (study_id, params_hash) WHERE held;

-- Optuna declares neither; both agree with all that it writes, and make claims and deltas independent of history.
CREATE UNIQUE INDEX hpo_trials_number ON public.trials (study_id, number);
CREATE INDEX hpo_trials_unfinished ON public.trials (study_id, number) WHERE state IN ('WAITING', 'RUNNING');


-- Optuna stores what is not finite by name; as a word it reads as a float everywhere.
CREATE FUNCTION incident_hpo.word_v1(p_type text) RETURNS text LANGUAGE sql IMMUTABLE AS
$$ SELECT CASE p_type WHEN 'NAN' THEN 'nan' WHEN 'INF_POS' THEN 'inf' WHEN 'INF_NEG' THEN '-inf' END $$;


-- A trial whole, in one row that is cheap to make and to read: numbers as words, parameters' names and distributions as
-- texts that are the same for trial after trial. Attributes stay text: JSON as Optuna writes it may hold NaN, which
-- PostgreSQL refuses.
CREATE VIEW incident_hpo.contents_v1 AS
SELECT t.trial_id, t.study_id, t.number, t.state::text AS state, t.datetime_start, t.datetime_complete,
    CASE WHEN t.state = 'WAITING' THEN -2 - coalesce(l.writes, 0)
         WHEN l.held AND l.token IS NOT NULL THEN l.writes ELSE -1 END AS version,
    (SELECT string_agg(coalesce(v.value::text, incident_hpo.word_v1(v.value_type::text)), ' ' ORDER BY v.objective)
     FROM public.trial_values v WHERE v.trial_id = t.trial_id) AS outcome,
    p.names, p.distributions, p.internals,
    (SELECT json_agg(json_build_array(a.key, a.value_json) ORDER BY a.trial_system_attribute_id)
     FROM public.trial_system_attributes a WHERE a.trial_id = t.trial_id) AS system_attrs,
    (SELECT json_agg(json_build_array(a.key, a.value_json) ORDER BY a.trial_user_attribute_id)
     FROM public.trial_user_attributes a WHERE a.trial_id = t.trial_id) AS user_attrs,
    (SELECT string_agg(i.step || ' ' || coalesce(i.intermediate_value::text,
                           incident_hpo.word_v1(i.intermediate_value_type::text)),
                       ' ' ORDER BY i.trial_intermediate_value_id)
     FROM public.trial_intermediate_values i WHERE i.trial_id = t.trial_id) AS reports
FROM public.trials t LEFT JOIN incident_hpo.leases l ON l.trial_id = t.trial_id, LATERAL (
    SELECT json_agg(q.param_name)::text AS names, string_agg(q.distribution_json, E'\n') AS distributions,
        string_agg(q.param_value::text, ' ') AS internals
    FROM (SELECT * FROM public.trial_params x WHERE x.trial_id = t.trial_id ORDER BY x.param_id) q) p;


-- What a cache lacks: trials from number p_known on, and those of its unfinished ones (p_ids) that changed since the
-- version it has (p_versions): from 0 on running under a lease, -1 running without one, so that its version tells nothing,
-- below waiting. A quick read leaves out running trials that only reported. At most p_limit rows of either kind, so that
-- no lock waits for a slow reader.
CREATE FUNCTION incident_hpo.changes_v1(p_study int, p_known int, p_ids int[], p_versions int[], p_quick bool, p_limit int)
RETURNS SETOF incident_hpo.contents_v1 LANGUAGE plpgsql STRICT SET search_path = pg_catalog, pg_temp SET jit = off
SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    RETURN QUERY
    WITH changed AS (
        (SELECT t.trial_id, t.number FROM public.trials t
         WHERE t.study_id = p_study AND t.number >= p_known ORDER BY t.number LIMIT p_limit)
        UNION
        (SELECT t.trial_id, t.number FROM unnest(p_ids, p_versions) AS had (trial_id, version)
         JOIN public.trials t ON t.trial_id = had.trial_id
         LEFT JOIN incident_hpo.leases l ON l.trial_id = t.trial_id
         WHERE t.study_id = p_study AND CASE t.state::text
             WHEN 'WAITING' THEN had.version <> -2 - coalesce(l.writes, 0)
             WHEN 'RUNNING' THEN NOT p_quick OR had.version < 0 OR l.token IS NULL OR l.writes <> had.version
             ELSE true END
         ORDER BY t.number LIMIT p_limit)
    )
    SELECT whole.* FROM changed,
        LATERAL (SELECT * FROM incident_hpo.contents_v1 c WHERE c.trial_id = changed.trial_id OFFSET 0) whole
    ORDER BY changed.number;
END $$;


-- Writes contents of a trial whose row the caller has locked. Writing the same twice is writing it once.
-- Floats come as text: JSON has neither NaN nor Infinity.
CREATE FUNCTION incident_hpo.fill_v1(p_trial int, p_contents json)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF p_contents->'params' IS NOT NULL THEN
        INSERT INTO public.trial_params (trial_id, param_name, param_value, distribution_json)
        SELECT p_trial, e->>0, (e->>1)::float8, e->>2 FROM json_array_elements(p_contents->'params') e
        ON CONFLICT (trial_id, param_name)
        DO UPDATE SET param_value = excluded.param_value, distribution_json = excluded.distribution_json;
    END IF;
    IF p_contents->'system_attrs' IS NOT NULL THEN
        INSERT INTO public.trial_system_attributes (trial_id, key, value_json)
        SELECT p_trial, e->>0, e->>1 FROM json_array_elements(p_contents->'system_attrs') e
        ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json;
    END IF;
    IF p_contents->'user_attrs' IS NOT NULL THEN
        INSERT INTO public.trial_user_attributes (trial_id, key, value_json)
        SELECT p_trial, e->>0, e->>1 FROM json_array_elements(p_contents->'user_attrs') e
        ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json;
    END IF;
    IF p_contents->'reports' IS NOT NULL THEN
        INSERT INTO public.trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
        SELECT p_trial, (e->>0)::int, CASE WHEN k.kind = 'FINITE' THEN k.value END,
            k.kind::public.trialintermediatevaluetype
        FROM json_array_elements(p_contents->'reports') e, LATERAL (SELECT (e->>1)::float8 AS value, CASE (e->>1)::float8
            WHEN 'NaN' THEN 'NAN' WHEN 'Infinity' THEN 'INF_POS' WHEN '-Infinity' THEN 'INF_NEG' ELSE 'FINITE' END AS kind) k
        ON CONFLICT (trial_id, step) DO UPDATE SET intermediate_value = excluded.intermediate_value,
            intermediate_value_type = excluded.intermediate_value_type;
    END IF;
    IF p_contents->'outcome' IS NOT NULL THEN
        INSERT INTO public.trial_values (trial_id, objective, value, value_type)
        SELECT p_trial, objective - 1, CASE WHEN k.kind = 'FINITE' THEN k.value END, k.kind::public.trialvaluetype
        FROM json_array_elements_text(p_contents->'outcome') WITH ORDINALITY AS e (value, objective),
            LATERAL (SELECT e.value::float8 AS value, CASE e.value::float8
            WHEN 'Infinity' THEN 'INF_POS' WHEN '-Infinity' THEN 'INF_NEG' ELSE 'FINITE' END AS kind) k
        ON CONFLICT (trial_id, objective) DO UPDATE SET value = excluded.value, value_type = excluded.value_type;
    END IF;
END $$;


-- A new trial, with contents if given; the same for the same request. NULL: there is no such study.
CREATE FUNCTION incident_hpo.create_v1(p_study int, p_request text, p_state text, p_start timestamp, p_complete timestamp,
                              p_contents json)
RETURNS int LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    made int;
BEGIN
    PERFORM FROM public.studies WHERE study_id = p_study FOR NO KEY UPDATE;  -- guard: study row
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    SELECT trial_id INTO made FROM incident_hpo.leases WHERE request = p_request;  -- guard: request
    IF FOUND THEN
        RETURN made;
    END IF;
    INSERT INTO public.trials (study_id, number, state, datetime_start, datetime_complete)
    SELECT p_study, coalesce(max(number) + 1, 0), p_state::public.trialstate, p_start, p_complete
    FROM public.trials WHERE study_id = p_study
    RETURNING trial_id INTO made;
    PERFORM incident_hpo.fill_v1(made, p_contents);
    INSERT INTO incident_hpo.leases (trial_id, study_id, held, expires, request)
    VALUES (made, p_study, false, clock_timestamp(), p_request);
    RETURN made;
END $$;


-- A trial whose run was cut short, its row locked by the caller: it waits in its own row for another attempt, or has
-- failed when this was the third. Nothing is done to a trial that has finished.
CREATE FUNCTION incident_hpo.requeue_v1(p_trial int, p_attempts int, p_reason text)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF p_attempts < 3 THEN
        UPDATE public.trials SET state = 'WAITING' WHERE trial_id = p_trial AND state = 'RUNNING';
        RETURN;
    END IF;
    UPDATE public.trials SET state = 'FAIL', datetime_complete = timezone('UTC', clock_timestamp())
    WHERE trial_id = p_trial AND state = 'RUNNING';
    IF FOUND THEN
        PERFORM incident_hpo.fill_v1(p_trial, json_build_object('user_attrs', json_build_array(
            json_build_array('trace', to_json(p_reason || ', three times')::text))));
    END IF;
END $$;


-- Takes back the trials of holders that let their lease expire; how many. Safe to run anywhere, any number at once,
-- and to die in: what is to be done follows from the tables alone. p_connected_s: how long the caller's connections hold.
CREATE FUNCTION incident_hpo.sweep_v1(p_study int, p_connected_s float8)
RETURNS int LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    span interval := (SELECT lease FROM incident_hpo.studies WHERE study_id = p_study);
    found_id int;
    report int;
    lost incident_hpo.leases;
    swept int := 0;
BEGIN
    -- After a restart or a lost network every holder has one lease of time to come back.
    IF span IS NULL OR make_interval(secs => p_connected_s) < span
       OR clock_timestamp() < pg_postmaster_start_time() + span THEN
        RETURN 0;
    END IF;
    -- Whoever runs a trial without a lease, by RDBStorage say, is given one from now on.
    INSERT INTO incident_hpo.leases (trial_id, study_id, held, expires, attempts)
    SELECT t.trial_id, p_study, true, clock_timestamp() + span, 1
    FROM public.trials t LEFT JOIN incident_hpo.leases l ON l.trial_id = t.trial_id
    WHERE t.study_id = p_study AND t.state = 'RUNNING' AND l.held IS NOT TRUE
    ON CONFLICT (trial_id) DO UPDATE SET held = true, expires = excluded.expires, token = NULL, last_report = NULL,
        params_hash = NULL, attempts = leases.attempts + 1 WHERE NOT leases.held;
    FOR found_id IN
        SELECT t.trial_id FROM incident_hpo.leases l JOIN public.trials t ON t.trial_id = l.trial_id
        WHERE l.study_id = p_study AND l.held AND l.expires < clock_timestamp()
        ORDER BY t.trial_id FOR NO KEY UPDATE OF t SKIP LOCKED
    LOOP
        report := (SELECT max(trial_intermediate_value_id) FROM public.trial_intermediate_values
                   WHERE trial_id = found_id);
        UPDATE incident_hpo.leases SET expires = clock_timestamp() + span, last_report = report
        WHERE trial_id = found_id AND token IS NULL AND last_report IS DISTINCT FROM report;
        UPDATE incident_hpo.leases SET held = false, writes = writes + 1
        WHERE trial_id = found_id AND held AND expires < clock_timestamp()  -- guard: lease
        RETURNING * INTO lost;
        IF FOUND THEN
            PERFORM incident_hpo.requeue_v1(found_id, lost.attempts, 'the worker died');
            swept := swept + 1;
        END IF;
    END LOOP;
    RETURN swept;
END $$;


-- The next trial for a worker: 'claimed' with trial, token and attempt; 'wait' while others run the last trials; 'done'
-- when the budget is recorded; 'unknown' for a study that the service does not run. The trial's number is the count of
-- trials before it, so the budget needs no count of its own: every trial but the waiting ones has begun.
CREATE FUNCTION incident_hpo.claim_v1(p_study int, p_request text, p_worker text, p_connected_s float8)
RETURNS TABLE (verdict text, trial int, token bigint, attempt int)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    ours incident_hpo.studies;
    made int;
    begun int;
    running int;
BEGIN
    PERFORM FROM public.studies WHERE study_id = p_study FOR NO KEY UPDATE;  -- guard: claim
    SELECT * INTO ours FROM incident_hpo.studies WHERE study_id = p_study;
    IF NOT FOUND THEN
        RETURN QUERY SELECT 'unknown', NULL::int, NULL::bigint, NULL::int;
        RETURN;
    END IF;
    RETURN QUERY SELECT 'claimed', l.trial_id, l.token, l.attempts FROM incident_hpo.leases l
        WHERE l.request = p_request;  -- guard: request
    IF FOUND THEN
        RETURN;  -- sent again, for its answer was lost
    END IF;
    PERFORM incident_hpo.sweep_v1(p_study, p_connected_s);
    SELECT coalesce(max(t.number) + 1, 0) INTO begun FROM public.trials t WHERE t.study_id = p_study;
    SELECT begun - count(*) FILTER (WHERE t.state = 'WAITING'), count(*) FILTER (WHERE t.state = 'RUNNING')
    INTO begun, running FROM public.trials t WHERE t.study_id = p_study AND t.state IN ('WAITING', 'RUNNING');
    IF begun >= ours.budget THEN
        RETURN QUERY SELECT CASE WHEN running > 0 THEN 'wait' ELSE 'done' END, NULL::int, NULL::bigint, NULL::int;
        RETURN;
    END IF;
    SELECT t.trial_id INTO made FROM public.trials t WHERE t.study_id = p_study AND t.state = 'WAITING'
    ORDER BY t.number LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;
    IF FOUND THEN
        UPDATE public.trials SET state = 'RUNNING', datetime_start = timezone('UTC', clock_timestamp())
        WHERE trial_id = made;
        -- It starts again: Optuna ignores a second report of a step, so the old ones would stay.
        DELETE FROM public.trial_intermediate_values i USING incident_hpo.leases l
        WHERE i.trial_id = made AND l.trial_id = made AND (l.attempts > 0 OR l.token IS NOT NULL);
    ELSE
        made := incident_hpo.create_v1(p_study, p_request, 'RUNNING', timezone('UTC', clock_timestamp()), NULL, '{}');
    END IF;
    RETURN QUERY
    INSERT INTO incident_hpo.leases AS l (trial_id, study_id, held, expires, token, request, worker, attempts)
    VALUES (made, p_study, true, clock_timestamp() + ours.lease, nextval('incident_hpo.tokens'), p_request, p_worker, 1)
    ON CONFLICT (trial_id) DO UPDATE SET held = true, expires = excluded.expires, token = excluded.token,
        request = excluded.request, worker = excluded.worker, attempts = l.attempts + 1, writes = l.writes + 1,
        params_hash = NULL
    RETURNING 'claimed', l.trial_id, l.token, l.attempts;
END $$;


-- Writes contents of a trial, and its next state unless that is NULL; renews its lease. p_token is NULL for a writer
-- without a lease. 'ok', or why nothing was written: 'missing', 'finished', 'lost' (another holds the trial, or nobody
-- any more), 'equal' (a running trial has these parameters), 'kept' (RUNNING was asked for and it was not WAITING).
CREATE FUNCTION incident_hpo.save_v1(p_trial int, p_token bigint, p_contents json, p_state text,
                            OUT verdict text, OUT study int)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    now_state text;
    lease incident_hpo.leases;
BEGIN
    SELECT t.study_id, t.state::text INTO study, now_state FROM public.trials t
    WHERE t.trial_id = p_trial FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        verdict := 'missing';
        RETURN;
    END IF;
    SELECT * INTO lease FROM incident_hpo.leases l WHERE l.trial_id = p_trial;
    IF lease.told = p_token AND now_state = p_state THEN  -- guard: read-back
        verdict := 'ok';  -- sent again, for its answer was lost
        RETURN;
    ELSIF now_state NOT IN ('WAITING', 'RUNNING') THEN
        verdict := 'finished';
        RETURN;
    ELSIF (CASE WHEN p_token IS NULL THEN lease.held AND lease.token IS NOT NULL
           ELSE NOT coalesce(lease.held AND lease.token = p_token, false) END) THEN  -- guard: fence
        verdict := 'lost';
        RETURN;
    ELSIF p_state = 'RUNNING' AND now_state <> 'WAITING' THEN
        verdict := 'kept';
        RETURN;
    END IF;
    IF p_contents->>'params_hash' IS NOT NULL THEN
        BEGIN
            UPDATE incident_hpo.leases l SET params_hash = p_contents->>'params_hash' WHERE l.trial_id = p_trial;
        EXCEPTION WHEN unique_violation THEN
            verdict := 'equal';
            RETURN;
        END;
    END IF;
    IF p_token IS NOT NULL AND p_state IS NULL AND p_contents->'params' IS NULL
       AND p_contents->'system_attrs' IS NULL AND p_contents->'user_attrs' IS NULL THEN
        -- A mere report does not wait for the disk: if the server crashes, its worker sends it again when it reconnects.
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
    PERFORM incident_hpo.fill_v1(p_trial, p_contents);
    UPDATE incident_hpo.leases l SET expires = clock_timestamp() + s.lease, held = l.held AND p_state IS NULL,
        told = CASE WHEN p_state IS NOT NULL THEN p_token END,
        attempts = l.attempts - coalesce(l.held AND p_state = 'WAITING', false)::int,
        writes = l.writes + (p_contents->'params' IS NOT NULL OR p_contents->'system_attrs' IS NOT NULL
                             OR p_contents->'user_attrs' IS NOT NULL)::int
    FROM incident_hpo.studies s WHERE l.trial_id = p_trial AND s.study_id = l.study_id;
    IF p_state IS NOT NULL THEN
        UPDATE public.trials SET state = p_state::public.trialstate,
            datetime_start = CASE WHEN p_state = 'RUNNING' THEN timezone('UTC', clock_timestamp()) ELSE datetime_start END,
            datetime_complete = CASE WHEN p_state NOT IN ('WAITING', 'RUNNING')
                                THEN timezone('UTC', clock_timestamp()) END
        WHERE trial_id = p_trial;
    END IF;
    verdict := 'ok';
END $$;


-- Ends a lease whose trial is not finished. Without a reason, as when the box is wanted back, the run does not count as
-- an attempt. Whether the lease was still held.
CREATE FUNCTION incident_hpo.release_v1(p_trial int, p_token bigint, p_reason text)
RETURNS bool LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ended incident_hpo.leases;
BEGIN
    PERFORM FROM public.trials WHERE trial_id = p_trial FOR NO KEY UPDATE;
    UPDATE incident_hpo.leases SET held = false, attempts = attempts - (p_reason IS NULL)::int, writes = writes + 1
    WHERE trial_id = p_trial AND token = p_token AND held
    RETURNING * INTO ended;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM incident_hpo.requeue_v1(p_trial, ended.attempts, p_reason);
    RETURN true;
END $$;


-- A sign of life between writes; whether the lease is still held.
CREATE FUNCTION incident_hpo.renew_v1(p_trial int, p_token bigint)
RETURNS bool LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM public.trials WHERE trial_id = p_trial FOR NO KEY UPDATE;
    UPDATE incident_hpo.leases l SET expires = clock_timestamp() + s.lease FROM incident_hpo.studies s
    WHERE l.trial_id = p_trial AND l.token = p_token AND l.held AND s.study_id = l.study_id;
    RETURN FOUND;
END $$;
