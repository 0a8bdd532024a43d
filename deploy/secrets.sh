#!/bin/sh
# Makes what docker-compose.yml mounts: ./secrets, with a random password for each role and the dashboard's first user,
# whose password is asked for; ./studies and ./results. What is there stays.
#   sh deploy/secrets.sh           the first user is admin; HPO=.venv/bin/hpo in front: with that instead of the image
#   sh deploy/secrets.sh anna      another user, or another password
set -eu
cd "$(dirname "$0")/.."
mkdir -p studies results
# Nobody else can enter the folder; what is mounted from it is read by the containers' users, who are other users.
mkdir -p -m 700 secrets
umask 077
for role in postgres hpo_owner hpo_worker hpo_reader; do
    file=secrets/${role}_password
    [ -e "$file" ] && continue
    openssl rand -hex 24 >"$file.new"
    chmod 444 "$file.new"
    mv "$file.new" "$file"
done
[ -n "${1:-}" ] || [ ! -e secrets/access.yaml ] || exit 0
if [ -n "${HPO:-}" ]; then
    "$HPO" dashboard-user "${1:-admin}" -f secrets/access.yaml
else
    docker compose run --rm --no-deps --user "$(id -u):$(id -g)" --volume ./secrets:/new hpo \
        dashboard-user "${1:-admin}" -f /new/access.yaml
fi
chmod 444 secrets/access.yaml
