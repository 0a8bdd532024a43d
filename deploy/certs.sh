#!/bin/sh
# An authority and, by it, the certificate of the database server, for ten years; the authority's key is thrown away.
# What is there stays. A new one: remove the folder's files, run this again and start the server again.
set -eu
cd "$1"
[ ! -s server.crt ] || exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 077
openssl ecparam -genkey -name prime256v1 -noout -out "$work/ca.key"
openssl req -x509 -new -key "$work/ca.key" -days 3650 -subj "/CN=authority of incident-hpo" -out ca.crt
openssl ecparam -genkey -name prime256v1 -noout -out server.key
openssl req -new -key server.key -subj "/CN=postgres" -out "$work/server.csr"
printf 'subjectAltName = DNS:postgres\nextendedKeyUsage = serverAuth\n' >"$work/extensions"
openssl x509 -req -in "$work/server.csr" -CA ca.crt -CAkey "$work/ca.key" -CAcreateserial -CAserial "$work/serial" \
    -days 3650 -extfile "$work/extensions" -out "$work/server.crt"
chmod 644 ca.crt "$work/server.crt"
mv "$work/server.crt" server.crt # the last, so that one which was cut short begins anew
chmod 755 .
