# needs: ostree
# Tells what is on the disk.
. "$JOB/lib.sh"

repo="$SYSROOT/ostree/repo"
deployments >"$JOB/state/deployments"
while read -r stateroot checksum serial; do
    origin="$SYSROOT/ostree/deploy/$stateroot/deploy/$checksum.$serial.origin"
    refspec=''
    if [ -e "$origin" ]; then
        while [ -z "$refspec" ] && read -r line; do
            case "$line" in refspec=*) refspec=${line#*=} ;; esac
        done <"$origin"
    fi
    version=$(ostree --repo="$repo" show --print-metadata-key=version "$checksum" 2>/dev/null | tr -d "'" || true)
    result deployment "$checksum $serial $stateroot ${refspec:--} ${version:--}"
done <"$JOB/state/deployments"
for entry in "$SYSROOT"/boot/loader/entries/*.conf; do
    [ -e "$entry" ] || continue
    read_entry "$entry"
    result kargs "${options?}"
done
ostree --repo="$repo" remote list --show-urls >"$JOB/state/remotes"
while read -r remote url; do
    result remote "$remote $url"
done <"$JOB/state/remotes"
# shellcheck disable=SC2046  # df's numbers are words
set -- $(df -k "$SYSROOT" | tail -n 1)
result root-used "$(($3 * 1024))"
result root-free "$(($4 * 1024))"
