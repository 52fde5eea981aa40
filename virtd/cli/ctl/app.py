"""The grammar: every command's name, and where it is."""

from __future__ import annotations

from typing import Final

from virtd.cli.ctl.lazy import Entry, LazyGroup, global_options

_SEE: Final = "See"
_GUESTS: Final = "Guests"
_INSIDE: Final = "Inside a guest"
_REST: Final = "Hosts, images and the rest"

ENTRIES: Final = {
    "get": Entry("cmd_get:get", "List resources of a type, or show some of them.", _SEE),
    "describe": Entry("cmd_describe:describe", "Show everything about one resource.", _SEE),
    "hosts": Entry("cmd_get:hosts", "List the hosts.", _SEE),
    "capabilities": Entry("cmd_host:capabilities", "Say what a host can do, and why not.", _SEE),
    "events": Entry("cmd_events:events", "Follow what happens.", _SEE),
    "operations": Entry("cmd_operations:operations", "List, follow and cancel operations.", _SEE),
    "create": Entry("cmd_create:create", "Create a guest, or say what it would become.", _GUESTS),
    "start": Entry("cmd_verbs:start", "Start guests.", _GUESTS),
    "shutdown": Entry("cmd_verbs:shutdown", "Ask guests to shut down.", _GUESTS),
    "stop": Entry("cmd_verbs:stop", "Cut the power of guests at once.", _GUESTS),
    "reboot": Entry("cmd_verbs:reboot", "Ask guests to reboot.", _GUESTS),
    "reset": Entry("cmd_verbs:reset", "Reset guests at once.", _GUESTS),
    "pause": Entry("cmd_verbs:pause", "Stop the CPUs of guests, keeping their memory.", _GUESTS),
    "resume": Entry("cmd_verbs:resume", "Let paused guests go on.", _GUESTS),
    "suspend": Entry("cmd_verbs:suspend", "Save guests to disk and stop them.", _GUESTS),
    "adopt": Entry("cmd_verbs:adopt", "Take guests under management that others defined.", _GUESTS),
    "delete": Entry("cmd_verbs:delete", "Delete guests and their disks.", _GUESTS),
    "label": Entry("cmd_verbs:label", "Set and remove labels of a guest.", _GUESTS),
    "wait": Entry("cmd_wait:wait", "Wait until a guest is in a state or ready.", _GUESTS),
    "snapshot": Entry("cmd_snapshot:snapshot", "Take, list, revert and delete snapshots.", _GUESTS),
    "console": Entry("cmd_console:console", "Use or read a guest's serial console.", _INSIDE),
    "screenshot": Entry("cmd_exec:screenshot", "Save a picture of a guest's display.", _INSIDE),
    "exec": Entry("cmd_exec:exec_", "Run a command in a guest by its agent.", _INSIDE),
    "host": Entry("cmd_host:host", "Add, remove and probe hosts.", _REST),
    "volume": Entry("cmd_storage:volume", "Create and delete volumes.", _REST),
    "image": Entry("cmd_storage:image", "Import and delete images.", _REST),
    "config": Entry("cmd_config:config", "Contexts: which daemon to talk to.", _REST),
    "services": Entry("cmd_services:services", "List the services of the daemon's API.", _REST),
    "version": Entry("cmd_version:version", "Versions of guestctl and of the daemon.", _REST),
    "completion": Entry("cmd_completion:completion", "Print the completion script of a shell.", _REST),
}

SYNONYMS: Final = {
    "list": "get",
    "ls": "get",
    "show": "describe",
    "rm": "delete",
    "operation": "operations",
    "op": "operations",
    "snap": "snapshot",
    "snapshots": "snapshot",
    "caps": "capabilities",
    "kill": "stop",
}

cli: Final = LazyGroup(
    "guestctl",
    entries=ENTRIES,
    synonyms=SYNONYMS,
    params=list(global_options()),
    help="Manage guests on every hypervisor that virtd knows.",
    epilog="Data goes to stdout, talk to stderr. Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 not "
    "allowed, 5 conflict or precondition, 6 unsupported here, 7 unreachable, 8 partial, 10 differences, "
    "124 timeout, 130 interrupted.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
