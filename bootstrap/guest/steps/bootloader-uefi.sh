# needs: grub-install install
# Installs GRUB for UEFI under the name that every firmware looks for, touching no firmware variables.
. "$JOB/lib.sh"

[ -d /usr/lib/grub/x86_64-efi ] || fail "the helper has no GRUB for UEFI (Debian: grub-efi-amd64-bin)"
esp=/run/composer/esp
mkdir -p "$esp"
mount "$(partition esp)" "$esp"
install -D -m 0644 "$JOB/data/grub.cfg" "$SYSROOT/boot/grub/grub.cfg"
grub-install --target=x86_64-efi --boot-directory="$SYSROOT/boot" --efi-directory="$esp" --removable \
    --no-nvram --locales= --fonts= --themes= --install-modules="$(param grub-modules)"
umount "$esp"
