-- Two databases, each with an owner who cannot read the other. Run once, by the image, on an empty data folder.
\set study_password `cut -d: -f5 "$STUDY_PGPASS"`
CREATE ROLE study LOGIN PASSWORD :'study_password';
CREATE DATABASE study OWNER study;
REVOKE ALL ON DATABASE study FROM PUBLIC;

\set mlflow_password `cut -d: -f5 "$MLFLOW_PGPASS"`
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE DATABASE mlflow OWNER mlflow;
REVOKE ALL ON DATABASE mlflow FROM PUBLIC;
