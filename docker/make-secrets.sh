#!/usr/bin/env bash
# Make the random secrets of docker/compose.yaml, one file each with mode 0600; files that exist are kept.
# Usage: docker/make-secrets.sh [FOLDER], docker/secrets unless given.
set -euo pipefail
umask 077
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

keep_or_make() { # NAME CONTENT
  [[ -e $folder/$1 ]] || printf '%s\n' "$2" > "$folder/$1"
}

keep_or_make ray_token "$(random)"
keep_or_make postgres_password "$(random)"
keep_or_make study_pgpass "*:*:study:study:$(random)"
keep_or_make mlflow_pgpass "*:*:mlflow:mlflow:$(random)"

# MLflow's server and its one client, the driver of a search, share a password: made together or not at all.
if [[ ! -e $folder/mlflow_server.env || ! -e $folder/mlflow_credentials ]]; then
  password=$(random)
  printf 'MLFLOW_AUTH_ADMIN_PASSWORD=%s\nMLFLOW_FLASK_SERVER_SECRET_KEY=%s\n' "$password" "$(random)" \
    > "$folder/mlflow_server.env"
  printf '[mlflow]\nmlflow_tracking_username = search\nmlflow_tracking_password = %s\n' "$password" \
    > "$folder/mlflow_credentials"
fi

# The containers never run as root, so root's files would be out of their reach.
if [[ $(id -u) == 0 ]]; then
  chown -R "${SEARCH_UID:-1000}:${SEARCH_UID:-1000}" "$folder"
fi
