# needs: ostree
# Tells what is on the disk.
. "$JOB/lib.sh"

repo="$SYSROOT/ostree/repo"
deployments >"$JOB/state/deployments"
while read -r stateroot checksum serial; do
    origin="$SYSROOT/ostree/deploy/$stateroot/deploy/$checksum.$serial.origin"
    refspec=$(sed -n 's/^refspec=//p' "$origin" | head -n 1)
    version=$(ostree --repo="$repo" show --print-metadata-key=version "$checksum" 2>/dev/null | tr -d "'" || true)
    result deployment "$checksum $serial $stateroot ${refspec:--} ${version:--}"
done <"$JOB/state/deployments"
for entry in "$SYSROOT"/boot/loader/entries/*.conf; do
    if [ -e "$entry" ]; then result kargs "$(sed -n 's/^options //p' "$entry")"; fi
done
for remote in $(ostree --repo="$repo" remote list); do
    result remote "$remote $(ostree --repo="$repo" remote show-url "$remote")"
done
# shellcheck disable=SC2046  # df's numbers are words
set -- $(df -k "$SYSROOT" | tail -n 1)
result root-used "$(($3 * 1024))"
result root-free "$(($4 * 1024))"
