#!/usr/bin/env bash
# Installs the system packages that the tests use, if they are missing and this user may install them:
# browsers for the call, and the graphics libraries that draw the simulated faces. In CI also nginx, coturn and
# pulseaudio (a sound device for Firefox), which elsewhere would be started as services; their tests are left out without.
set -euo pipefail

missing=()
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
    || missing+=(chromium)
command -v firefox-esr >/dev/null || command -v firefox >/dev/null \
    || ! apt-cache show firefox-esr >/dev/null 2>&1 || missing+=(firefox-esr)  # Debian's name; elsewhere its tests are left out
for library in libEGL.so.1:libegl1 libGL.so.1:libgl1; do
    ldconfig -p 2>/dev/null | grep -q "${library%%:*}" || missing+=("${library##*:}")
done
if [ "${CI:-}" = true ] && [ ! -x /usr/sbin/nginx ]; then
    missing+=(nginx-light)
fi
if [ "${CI:-}" = true ] && ! command -v pulseaudio >/dev/null; then
    missing+=(pulseaudio)
fi
if [ "${CI:-}" = true ] && ! command -v turnserver >/dev/null; then
    missing+=(coturn)
fi
[ ${#missing[@]} -eq 0 ] && exit 0

if command -v apt-get >/dev/null; then
    if [ "$(id -u)" -eq 0 ]; then
        sudo=()
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        sudo=(sudo)
    else
        echo "The tests need system packages. Please run: sudo apt-get install ${missing[*]}" >&2
        exit 1
    fi
    echo "installing ${missing[*]}"
    "${sudo[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
else
    echo "The tests need these packages or what your system calls them: ${missing[*]}" >&2
    exit 1
fi
