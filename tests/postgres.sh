#!/usr/bin/env bash
# A PostgreSQL server of its own on loopback, with the empty database "convae" of the user "convae".
#   postgres.sh start PORT    prints the folder that it lives in
#   postgres.sh stop FOLDER   ends it and removes the folder
#   postgres.sh find          prints where Debian's package postgresql has its programs, or fails
set -euo pipefail

programs=$(find /usr/lib/postgresql -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1)
[ -n "$programs" ] || { echo "Debian's package postgresql is missing" >&2; exit 1; }

unprivileged() {  # PostgreSQL refuses to run as root
    if [ "$(id -u)" = 0 ]; then setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; else "$@"; fi
}

case $1 in
find)
    echo "$programs"
    ;;
start)
    folder=$(mktemp -d /tmp/convae-postgres.XXXXXX)
    [ "$(id -u)" != 0 ] || chown postgres "$folder"
    cd "$folder"
    {
        unprivileged "$programs/initdb" --username=convae --auth=trust --no-sync "$folder/data"
        unprivileged "$programs/pg_ctl" start --wait --pgdata="$folder/data" --log="$folder/log" \
            --options="-p $2 -c listen_addresses=127.0.0.1 -c unix_socket_directories=$folder -c fsync=off"
        "$programs/createdb" --host=127.0.0.1 --port="$2" --username=convae convae
    } >&2
    echo "$folder"
    ;;
stop)
    cd "$2"
    unprivileged "$programs/pg_ctl" stop --mode=fast --pgdata="$2/data" >&2
    cd / && rm -r "$2"
    ;;
esac
