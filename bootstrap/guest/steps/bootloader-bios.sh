# needs: grub-install install
# Installs GRUB for BIOS into the BIOS boot partition.
. "$JOB/lib.sh"

[ -d /usr/lib/grub/i386-pc ] || fail "the helper has no GRUB for BIOS (Debian: grub-pc-bin)"
install -D -m 0644 "$JOB/data/grub.cfg" "$SYSROOT/boot/grub/grub.cfg"
grub-install --target=i386-pc --boot-directory="$SYSROOT/boot" --no-floppy --locales= --fonts= --themes= \
    --install-modules="$(param grub-modules) biosdisk linux16" "$(disk_with composer-target)"
