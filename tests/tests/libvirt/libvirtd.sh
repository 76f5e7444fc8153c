# A libvirtd of a test's own: first process of new PID and mount namespaces, so that it sees
# nothing of the machine's libvirt and everything it starts ends with this. $1 is a directory for
# its socket. Started again when it ends, as an init system would.
set -eu
exec 2>>"$1/log"
for dir in /run /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt; do
    mkdir -p "$dir"
    mount -t tmpfs tmpfs "$dir"
done
# libvirt looks for its user, which not each of its packages makes, and runs QEMU as root here.
for file in passwd group; do
    cp "/etc/$file" "/run/$file"
    mount --bind "/run/$file" "/etc/$file"
done
getent passwd libvirt-qemu >/dev/null || echo 'libvirt-qemu:x:64055:64055::/:/bin/false' >>/etc/passwd
getent group libvirt-qemu >/dev/null || echo 'libvirt-qemu:x:64055:' >>/etc/group
cat >/etc/libvirt/qemu.conf <<'END'
user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
remember_owner = 0
stdio_handler = "file"
END
cat >/etc/libvirt/libvirtd.conf <<END
unix_sock_dir = "$1"
auth_unix_ro = "none"
auth_unix_rw = "none"
END
while :; do
    libvirtd &
    # The shell also reaps what libvirtd leaves behind.
    wait "$!" || true
done
