# needs: ostree
# Puts a deployment that is on the disk first.  ostree 2022.7 has no command for that: its order is that of
# the versions in the boot entries, highest first, and the change of a kernel argument writes them all anew.
. "$JOB/lib.sh"

stateroot=$(param stateroot)
commit=$(param commit)
# A change of kernel arguments in the field makes a second deployment of the same commit.
serial=$(param serial)
count=$(deployments | wc -l)
place=$(deployments | grep -nx "$stateroot $commit $serial" | head -n 1 | cut -d: -f1)
[ -n "$place" ] || fail "the deployment $commit is not on the disk"

chosen=$(boot_entry "$((count - place + 1))")
[ -n "$chosen" ] || fail "the deployment $commit has no boot entry"
sed -i "s/^version .*/version $((count + 1))/" "$chosen"

set -f
set --
# shellcheck disable=SC2013  # its words are wanted
for word in $(sed -n 's/^options //p' "$chosen"); do
    case "$word" in
        ostree=*) ;;
        *) set -- "$@" "--append=$word" ;;
    esac
done
ostree admin instutil set-kargs --merge --append=composer.rollback
ostree admin instutil set-kargs "$@"

deployments | head -n 1 | grep -qx "$stateroot $commit $serial" \
    || fail "after the rollback the default deployment is not the one asked for"
