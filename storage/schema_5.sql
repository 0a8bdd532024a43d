-- What was told to a webhook, and files that people fetch from the dashboard.
CREATE TABLE incident_hpo.notices (
    study_id int NOT NULL REFERENCES public.studies ON DELETE CASCADE,
    event text NOT NULL,
    tried timestamptz NOT NULL DEFAULT clock_timestamp(),
    sent timestamptz,  -- NULL: not yet, or nobody knows
    PRIMARY KEY (study_id, event)
);

CREATE TABLE incident_hpo.artifacts (
    artifact_id text PRIMARY KEY,
    study_id int NOT NULL REFERENCES public.studies ON DELETE CASCADE,
    content bytea NOT NULL
);
