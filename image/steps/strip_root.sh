#!/bin/sh
# Take out of a Debian root what a sandbox must not hold, or does not need, by package
# and by folder. Runs in a build stage; the flattened copy makes the removal real.
set -eu

drop_packages="
    adduser apt apt-utils ca-certificates debconf debian-archive-keyring dpkg dpkg-dev
    e2fsprogs gpgv init-system-helpers libapt-pkg6.0 libdb5.3 libext2fs2 libgnutls30
    libhogweed6 libnettle8 libnsl2 libp11-kit0 libpam-modules libpam-modules-bin
    libpam-runtime libpam0g libsemanage2 libsepol2 libss2 libsystemd0 libtasn1-6
    libtirpc3 libudev1 login logsave mount openssl passwd perl perl-base
    python3-distutils python3-lib2to3 python3-pip-whl python3-setuptools-whl
    python3-venv python3.11-venv sysvinit-utils tzdata util-linux util-linux-extra
"
drop_paths="
    /boot /home /media /srv /usr/games /usr/include /usr/local/include /usr/local/share
    /usr/lib/apt /usr/lib/dpkg /usr/lib/mime /usr/lib/systemd /usr/lib/udev /usr/lib/init
    /usr/lib/x86_64-linux-gnu/gconv /usr/lib/x86_64-linux-gnu/perl-base
    /usr/lib/x86_64-linux-gnu/security /usr/lib/x86_64-linux-gnu/engines-3
    /usr/lib/python3/dist-packages /usr/local/lib/python3.11/site-packages
    /usr/share/bash-completion /usr/share/bug /usr/share/debconf
    /usr/share/applications /usr/share/base-files /usr/share/base-passwd
    /usr/share/binfmts /usr/share/ca-certificates /usr/share/debianutils
    /usr/share/dict /usr/share/keyrings /usr/share/python3 /usr/share/util-linux
    /usr/share/doc-base /usr/share/dpkg /usr/share/gcc /usr/share/gdb /usr/share/i18n
    /usr/share/info /usr/share/lintian /usr/share/locale /usr/share/man /usr/share/menu
    /usr/share/perl5 /usr/share/pixmaps /usr/share/pam /usr/share/pam-configs
    /usr/share/polkit-1 /usr/share/python-wheels /usr/share/zoneinfo
    /usr/lib/valgrind /usr/lib/binfmt.d /usr/lib/tmpfiles.d /usr/libexec/dpkg /usr/src
    /usr/local/games /usr/local/src /etc/ca-certificates /etc/ca-certificates.conf
    /etc/passwd- /etc/group- /etc/.pwd.lock
    /etc/apt /etc/cron.d /etc/cron.daily /etc/dpkg /etc/default /etc/init.d /etc/kernel
    /etc/logrotate.d /etc/pam.d /etc/perl /etc/rc0.d /etc/rc1.d /etc/rc2.d /etc/rc3.d
    /etc/rc4.d /etc/rc5.d /etc/rc6.d /etc/rcS.d /etc/security /etc/skel /etc/ssh
    /etc/systemd /etc/subuid /etc/subgid /etc/shadow /etc/gshadow
    /var/backups /var/cache /var/lib/apt /var/lib/dpkg /var/lib/pam /var/lib/systemd
    /var/log /var/mail /var/spool /opt/pip
"
drop_stdlib="
    ensurepip idlelib lib2to3 pydoc_data test tkinter turtledemo turtle.py
    EXTERNALLY-MANAGED
"

size() { du -sxm / --exclude=/proc --exclude=/sys --exclude=/build | cut -f1; }
before=$(size)

# The lists of what each package holds go with dpkg itself, so they are read first.
for package in $drop_packages; do
    dpkg -L "$package" 2>/dev/null || true
done | sort -u >/tmp/doomed
dpkg-query -f '${binary:Package}\n' -W >/tmp/kept-packages
while read -r path; do
    # Packages also list folders, and /bin, a link to one.
    if [ ! -d "$path" ]; then rm -f "$path"; fi
done </tmp/doomed

for stdlib in /usr/lib/python3.11 /usr/local/lib/python3.11; do
    for name in $drop_stdlib; do rm -rf "${stdlib:?}/$name"; done
    rm -rf "$stdlib"/config-3.11*
    find "$stdlib" -type d \( -name __pycache__ -o -name tests -o -name test \) \
        -prune -exec rm -rf {} + 2>/dev/null || true
done
rm -f /usr/local/bin/pip* /usr/local/bin/idle* /usr/local/bin/2to3* /usr/local/bin/pydoc*
rm -f /usr/bin/pydoc* /usr/bin/2to3* /usr/bin/py3* /usr/bin/pdb* /usr/bin/pygettext*
rm -f /usr/local/bin/python3*-config /usr/bin/python3*-config
find /usr -name '*.a' -o -name '*.la' -o -name '*.pc' | xargs -r rm -f
for path in $drop_paths; do rm -rf "$path"; done
# Licences stay: whoever passes an image on must pass them on too.
find /usr/share/doc -type f ! -name 'copyright*' -delete
find /usr/share/doc -type d -empty -delete
rm -rf /root/.[!.]* /tmp/doomed /tmp/kept-packages /usr/bin/dpkg* /usr/bin/apt* /usr/bin/perl*

find / -xdev -type f -perm /6000 -exec chmod a-s {} +
# Dangling links are what the removals left behind.
find /usr /etc /opt -xdev -xtype l ! -path '/usr/lib/ssl/*' -delete

mkdir -p /models /opt/venv/bin /opt/executor /home
printf 'root:x:0:0:root:/root:/usr/sbin/nologin\nsandbox:x:65532:65532::/tmp/home:/bin/sh\n' >/etc/passwd
printf 'root:x:0:\nsandbox:x:65532:\n' >/etc/group
echo "removed from the root: $before MB to $(size) MB"
