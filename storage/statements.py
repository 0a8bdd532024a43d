"""What the storage sends, each one message and one transaction; why each may be sent again when its answer was lost.

The functions and the view are in schema*.sql, where the locks are explained.
"""

# Idempotent by its request key. LATERAL on the first function's result: changes are read after it has written.
CLAIM = """SELECT c.verdict, c.trial, c.token, c.attempt, x.*
FROM incident_hpo.claim_v2(%s, %s, %s, incident_hpo.steady_s_v1(%s, %s)) c
LEFT JOIN LATERAL incident_hpo.changes_v1(
    CASE WHEN c.verdict <> 'unknown' THEN %s END, %s, %s::int[], %s::int[], true, %s) x ON true"""

# Idempotent: contents are upserts, and a state is read back by the lease's token. Fenced by that token.
SAVE_LEASED = """SELECT s.verdict, x.* FROM incident_hpo.save_leased_v1(%s, %s, %s, %s) s
LEFT JOIN LATERAL incident_hpo.changes_v1(
    CASE s.verdict WHEN 'ok' THEN %s::int END, %s, %s::int[], %s::int[], true, %s) x ON true"""

# By the owner, without a lease: refused while another holds one. Sent again after it ended the trial: 'finished'.
SAVE = "SELECT verdict FROM incident_hpo.save_v1(%s, NULL, %s, %s)"

# Idempotent by its request key.
CREATE = """SELECT incident_hpo.create_v1(%s, %s, %s,
    CASE WHEN %s THEN timezone('UTC', clock_timestamp()) ELSE %s END, %s, %s)"""

# Fenced by the token; sent again it finds nothing to release.
RELEASE = "SELECT incident_hpo.release_v1(%s, %s, %s)"

# Fenced by the token; sent again it finds nothing to change.
RESUMED = "SELECT incident_hpo.resumed_v1(%s, %s, %s)"

# All parts may be repeated: a renewal and a sign of life are updates to now, a sweep follows from the tables. The sweep
# comes before the sign, by which a worker that was cut off would seem to have been there.
KEEP = """SELECT incident_hpo.renew_v1(%s, %s), incident_hpo.sweep_v1(%s, incident_hpo.steady_s_v1(%s, %s)),
    incident_hpo.sign_v1(%s)"""

# One row of NULLs: nothing has changed. No row: there is no such study.
READ_CHANGES = """SELECT x.* FROM public.studies s
LEFT JOIN LATERAL incident_hpo.changes_v1(s.study_id, %s, %s::int[], %s::int[], false, %s) x ON true
WHERE s.study_id = %s"""

READ_TRIAL = "SELECT * FROM incident_hpo.contents_v1 WHERE trial_id = %s"
