# needs: ostree blkid
# Deploys the pulled commit as the default one, with the kernel arguments of the one before it or,
# on a new disk, those of the recipe.
. "$JOB/lib.sh"

stateroot=$(param stateroot)
refspec=$(param ref)
if has remote-name; then refspec="$(param remote-name):$refspec"; fi
keep=$(param keep)

set -- --os="$stateroot"
if has kargs; then
    set -- "$@" --karg="root=UUID=$(blkid -s UUID -o value "$(partition root)")" --karg=rw
    # Appended: --karg would let the second console= replace the first.
    while read -r karg; do set -- "$@" --karg-append="$karg"; done <"$JOB/data/kargs"
fi
if [ "$keep" -gt 2 ]; then set -- "$@" --retain; fi
# A product that upgraded itself in the field has the commit already; deploying it again would push the
# former one, the way back, off the disk.
deployments | head -n 1 | grep -q "^$stateroot $(param commit) " || ostree admin deploy "$@" "$refspec"

# The default is at index 0; the oldest are at the end.  Other stateroots are left alone.
while [ "$(deployments | grep -c "^$stateroot ")" -gt "$keep" ]; do
    index=$(deployments | grep -n "^$stateroot " | tail -n 1 | cut -d: -f1)
    ostree admin undeploy $((index - 1))
done

deployments | head -n 1 | grep -q "^$stateroot $(param commit) " \
    || fail "after the deploy the default deployment is not the commit asked for"
