# needs: install
# Puts a unit into the default deployment of a throw-away overlay that reports, on the second serial
# port, what was booted and how it went, and then ends the machine.
. "$JOB/lib.sh"

root=$(deployment_folder)
[ -n "$root" ] || fail "the disk has no deployment"
[ -d "$root/usr/lib/systemd/system" ] || fail "the product has no systemd, and verify knows no other init"
install -D -m 0755 "$JOB/data/verify-report" "$root/etc/composer-verify/report"
install -D -m 0644 "$JOB/data/composer-verify.service" "$root/etc/systemd/system/composer-verify.service"
# Wanted by sysinit.target, so that it also runs where the boot ends in emergency mode.
mkdir -p "$root/etc/systemd/system/sysinit.target.wants"
ln -sf ../composer-verify.service "$root/etc/systemd/system/sysinit.target.wants/composer-verify.service"
