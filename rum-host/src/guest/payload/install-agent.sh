#!/bin/sh
# From rum: installs the rum-agent that is beside this script, and starts it. Run it as root; with
# --at-boot it is run again at each boot.
set -eu
at_boot=${1-}
here=$(dirname "$0")
agent=/usr/local/bin/rum-agent
unit=/etc/systemd/system/rum-agent.service
# The group of processes that keeps the agent running where no init does.
keeper=/run/rum-agent.pid

# put TO MODE: what comes on stdin goes there. At a boot from a full disk what is there stays, and is
# used.
put() {
    mkdir -p "$(dirname "$1")"
    if cat >"$1.new" && chmod "$2" "$1.new" && mv "$1.new" "$1"; then
        # Where SELinux is: else a label of whoever runs this may keep init from executing it.
        if command -v restorecon >/dev/null; then restorecon "$1" || :; fi
        return
    fi
    rm -f "$1.new"
    echo "rum: cannot write $1" >&2
    [ -n "$at_boot" ]
}

# Keeps the agent running until the machine goes down, and says why it ended on $1.
keep() {
    modprobe vmw_vsock_virtio_transport 2>/dev/null || :
    if [ -s "$keeper" ]; then kill -TERM "-$(cat "$keeper")" 2>/dev/null || :; fi
    setsid sh -c 'echo $$ >"$0"; while :; do "$1" --quiet; sleep 1; done' "$keeper" "$agent" \
        </dev/null >/dev/null 2>"$1" &
}

cmp -s "$here/rum-agent" "$agent" || put "$agent" 0755 <"$here/rum-agent"

if [ -d /run/systemd/system ]; then
    put "$unit" 0644 <<'END'
@UNIT@
END
    # Before 239 systemd does not know @system-service, and would allow little more than the rest of that line.
    version=$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
    if [ "${version:-239}" -lt 239 ]; then sed -i '/^SystemCallFilter=/d' "$unit" || :; fi
    systemctl daemon-reload
    if [ -n "$at_boot" ]; then
        systemctl enable rum-agent.service || :
        # Not to be waited for: it starts when the part of the boot that this runs in is over.
        systemctl --no-block restart rum-agent.service
    else
        systemctl enable rum-agent.service
        systemctl restart rum-agent.service
    fi
elif [ -n "$at_boot" ]; then
    # No init has to know of it.
    keep /dev/console
elif [ -d /run/openrc ]; then
    put /etc/init.d/rum-agent 0755 <<'END'
@OPENRC@
END
    rc-update -q add rum-agent default
    rc-service rum-agent restart
elif grep -q '^[^#]*::sysinit:' /etc/inittab 2>/dev/null; then
    # The init of busybox, which starts it again when it has ended.
    grep -q "$agent" /etc/inittab || echo "::respawn:$agent --quiet" >>/etc/inittab
    kill -HUP 1
    killall rum-agent 2>/dev/null || :
else
    keep /dev/null
    echo "rum-agent runs now, but nothing starts it at the next boot." >&2
    echo "hint: have this machine's init start $agent as root, and again when it ends" >&2
fi
