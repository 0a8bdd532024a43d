#!/bin/sh
# Builds the image where no engine runs and no registry of images is in reach: with buildah, on a base of Debian's packages
# under the name that the Dockerfile asks for. The same Dockerfile takes the official base where one is to be had.
# As root: apt-get install buildah debootstrap; deploy/build-without-engine.sh [NAME]
set -eu
cd "$(dirname "$0")/.."
name=${1:-localhost/incident-hpo:0.1.0}
base=$(sed -n 's/^ARG BASE=//p' Dockerfile)
work=$(mktemp -d /var/tmp/hpo-image.XXXXXX)
trap 'rm -rf "$work"' EXIT

if ! buildah inspect --type image "$base" >/dev/null 2>&1; then
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$work/base"
    rm -rf "$work"/base/var/cache/apt/* "$work"/base/var/lib/apt/lists/*
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$work/base" /
    buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    buildah commit --quiet --rm "$container" "$base"
fi

# The builder sees this machine's certificates, pip's settings and the wheels that they name; nothing of them is in the image.
{ echo '[global]'; python3 -m pip config list | sed -n "s/^\(global\|:env:\)\.\(.*\)='\(.*\)'$/\2 = \3/p" | sort -u -k1,1; } >"$work/pip.conf"
volumes="--volume $work/pip.conf:/etc/pip.conf:ro"
for path in /etc/ssl/certs /etc/xdg/pip /opt/wheels /opt/pypi /opt/pypi-more; do
    [ ! -e "$path" ] || volumes="$volumes --volume $path:$path:ro"
done
# shellcheck disable=SC2086  # several words
buildah build --layers --pull-never --isolation chroot --format docker --build-arg TORCH_INDEX=https://pypi.org/simple \
    $volumes --tag "$name" .
