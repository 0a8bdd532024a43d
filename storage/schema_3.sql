-- The data sets that studies use, by their SHA-256, so that a worker on another box needs the database alone. Chunks are
-- written first, one by one, and refer to nothing; the row in `datasets` comes last and says that all of them are there.
-- What a day has passed over may be removed unless a study names it: until then somebody may be at it.
CREATE TABLE incident_hpo.datasets (
    sha256 text PRIMARY KEY,
    bytes bigint NOT NULL,
    stored timestamptz NOT NULL DEFAULT clock_timestamp()  -- or found here by one who would store it
);

CREATE TABLE incident_hpo.dataset_chunks (
    sha256 text NOT NULL,
    number int NOT NULL,
    content bytea NOT NULL,
    stored timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (sha256, number)
);
ALTER TABLE incident_hpo.dataset_chunks ALTER COLUMN content SET STORAGE EXTERNAL;  -- it is compressed already

ALTER TABLE incident_hpo.studies ADD COLUMN dataset text REFERENCES incident_hpo.datasets;
