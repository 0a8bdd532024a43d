-- Who may do what, for the roles that `hpo db init` makes; run again after every migration. The owner may do everything.
DO $$ BEGIN EXECUTE format('REVOKE CREATE, TEMPORARY ON DATABASE %I FROM PUBLIC', current_database()); END $$;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA incident_hpo FROM PUBLIC;
GRANT USAGE ON SCHEMA public, incident_hpo TO hpo_worker, hpo_reader;
GRANT SELECT ON public.alembic_version, public.version_info, public.studies, public.study_directions,
    public.study_user_attributes, public.study_system_attributes, public.trials, public.trial_user_attributes,
    public.trial_system_attributes, public.trial_params, public.trial_values, public.trial_intermediate_values,
    public.trial_heartbeats TO hpo_worker, hpo_reader;  -- Optuna's; what else may be there is none of theirs
GRANT SELECT ON ALL TABLES IN SCHEMA incident_hpo TO hpo_worker, hpo_reader;
REVOKE SELECT ON incident_hpo.dataset_chunks FROM hpo_reader;  -- texts of tickets, masked as they are
REVOKE SELECT ON incident_hpo.leases FROM hpo_worker, hpo_reader;
GRANT SELECT (trial_id, study_id, held, expires, worker, attempts, writes, params_hash, last_report, since, device_s,
    reached, is_ours)
    ON incident_hpo.leases TO hpo_worker, hpo_reader;  -- not token, told, request: by them one writes as another worker
GRANT EXECUTE ON FUNCTION incident_hpo.word_v1, incident_hpo.changes_v1, incident_hpo.terms_v1, incident_hpo.workers_v1
    TO hpo_worker, hpo_reader;
GRANT EXECUTE ON FUNCTION incident_hpo.claim_v2, incident_hpo.steady_s_v1, incident_hpo.save_leased_v1,
    incident_hpo.release_v1, incident_hpo.renew_v1, incident_hpo.resumed_v1, incident_hpo.sweep_v1,
    incident_hpo.register_v1, incident_hpo.sign_v1, incident_hpo.leave_v1, incident_hpo.end_v1 TO hpo_worker;
GRANT INSERT, UPDATE ON incident_hpo.notices TO hpo_worker;
