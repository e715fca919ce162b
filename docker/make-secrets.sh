#!/usr/bin/env bash
# Make the random secrets of docker/compose.yaml, one file each with mode 0600; those made before are kept.
# Usage: docker/make-secrets.sh [FOLDER], docker/secrets unless given.
set -euo pipefail
umask 077
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

make() { # NAME CONTENT; whole or not at all, so that a run cut short leaves no half of a secret to be kept
  printf '%s\n' "$2" > "$folder/.$1.new"
  mv "$folder/.$1.new" "$folder/$1"
}

keep_or_make() { # NAME CONTENT
  [[ -s $folder/$1 ]] || make "$1" "$2"
}

keep_or_make ray_token "$(random)"
keep_or_make postgres_password "$(random)"
keep_or_make study_pgpass "*:*:study:study:$(random)"
keep_or_make mlflow_pgpass "*:*:mlflow:mlflow:$(random)"

# MLflow's server and its one client, the driver of a search, share a password: made together or not at all.
if [[ ! -s $folder/mlflow_server.env || ! -s $folder/mlflow_credentials ]]; then
  password=$(random)
  rm -f "$folder/mlflow_credentials" # a run cut short below must not leave the old one beside a new server.env
  make mlflow_server.env "MLFLOW_AUTH_ADMIN_PASSWORD=$password
MLFLOW_FLASK_SERVER_SECRET_KEY=$(random)"
  make mlflow_credentials "[mlflow]
mlflow_tracking_username = search
mlflow_tracking_password = $password"
fi

# The containers never run as root, so root's files would be out of their reach.
if [[ $(id -u) == 0 ]]; then
  chown -R "${SEARCH_UID:-1000}:${SEARCH_UID:-1000}" "$folder"
fi
