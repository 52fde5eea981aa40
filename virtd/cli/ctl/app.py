"""The grammar: every command's name, and where it is."""

from __future__ import annotations

from typing import Final

from virtd.cli.ctl.lazy import Entry, LazyGroup, global_options

_SEE: Final = "See"
_GUESTS: Final = "Guests"
_DEVICES: Final = "Devices of guests"
_INSIDE: Final = "Inside a guest"
_REST: Final = "Hosts, images and the rest"

ENTRIES: Final = {
    "get": Entry("cmd_get:get", "List resources of a type, or show some of them.", _SEE),
    "describe": Entry("cmd_describe:describe", "Show everything about one resource.", _SEE),
    "hosts": Entry("cmd_get:hosts", "List the hosts.", _SEE),
    "capabilities": Entry("cmd_host:capabilities", "Say what a host can do, and why not.", _SEE),
    "top": Entry("cmd_top:top", "Show which guests use how much now.", _SEE),
    "events": Entry("cmd_events:events", "Follow what happens.", _SEE),
    "operations": Entry("cmd_operations:operations", "List, follow and cancel operations.", _SEE),
    "create": Entry("cmd_create:create", "Create a guest, or say what it would become.", _GUESTS),
    "apply": Entry("cmd_apply:apply", "Make guests what documents say.", _GUESTS),
    "diff": Entry("cmd_apply:diff", "Say what `apply` would change.", _GUESTS),
    "plan": Entry("cmd_apply:plan", "Say what guests would become on several hosts.", _GUESTS),
    "export": Entry("cmd_apply:export", "Print guests as documents that `apply` takes.", _GUESTS),
    "edit": Entry("cmd_apply:edit", "Edit a guest as a document, and apply it.", _GUESTS),
    "start": Entry("cmd_verbs:start", "Start guests.", _GUESTS),
    "shutdown": Entry("cmd_verbs:shutdown", "Ask guests to shut down.", _GUESTS),
    "stop": Entry("cmd_verbs:stop", "Cut the power of guests at once.", _GUESTS),
    "reboot": Entry("cmd_verbs:reboot", "Ask guests to reboot.", _GUESTS),
    "reset": Entry("cmd_verbs:reset", "Reset guests at once.", _GUESTS),
    "pause": Entry("cmd_verbs:pause", "Stop the CPUs of guests, keeping their memory.", _GUESTS),
    "resume": Entry("cmd_verbs:resume", "Let paused guests go on.", _GUESTS),
    "suspend": Entry("cmd_verbs:suspend", "Save guests to disk and stop them.", _GUESTS),
    "clone": Entry("cmd_verbs:clone", "Make a guest like another one.", _GUESTS),
    "migrate": Entry("cmd_migrate:migrate", "Move a guest to another host of the same hypervisor.", _GUESTS),
    "adopt": Entry("cmd_verbs:adopt", "Take guests under management that others defined.", _GUESTS),
    "release": Entry("cmd_verbs:release", "Let go of guests; they stay as they are.", _GUESTS),
    "discard": Entry("cmd_verbs:discard", "Throw the saved memory of suspended guests away.", _GUESTS),
    "protect": Entry("cmd_verbs:protect", "Protect guests from being deleted.", _GUESTS),
    "unprotect": Entry("cmd_verbs:unprotect", "Let protected guests be deleted again.", _GUESTS),
    "delete": Entry("cmd_verbs:delete", "Delete guests and their disks.", _GUESTS),
    "trash": Entry("cmd_backup:trash", "Deleted guests that can be recovered.", _GUESTS),
    "label": Entry("cmd_verbs:label", "Set and remove labels of a guest.", _GUESTS),
    "wait": Entry("cmd_wait:wait", "Wait until a guest is in a state or ready.", _GUESTS),
    "snapshot": Entry("cmd_snapshot:snapshot", "Take, list, revert and delete snapshots.", _GUESTS),
    "schedule": Entry("cmd_schedule:schedule", "Scheduled snapshots with retention.", _GUESTS),
    "backup": Entry("cmd_backup:backup", "Back guests up, check, restore.", _GUESTS),
    "attach": Entry("cmd_device:attach", "Add a disk or an interface.", _DEVICES),
    "detach": Entry("cmd_device:detach", "Take a disk or an interface away.", _DEVICES),
    "insert": Entry("cmd_device:insert", "Put a medium into a drive.", _DEVICES),
    "eject": Entry("cmd_device:eject", "Take the medium out of a drive.", _DEVICES),
    "resize": Entry("cmd_device:resize", "Make a disk larger.", _DEVICES),
    "link": Entry("cmd_device:link", "Plug an interface's cable in or out.", _DEVICES),
    "console": Entry("cmd_console:console", "Use or read a guest's serial console.", _INSIDE),
    "vnc": Entry("cmd_vnc:vnc", "Let a VNC viewer of this machine show a guest's display.", _INSIDE),
    "screenshot": Entry("cmd_exec:screenshot", "Save a picture of a guest's display.", _INSIDE),
    "exec": Entry("cmd_exec:exec_", "Run a command in a guest by its agent.", _INSIDE),
    "cp": Entry("cmd_inside:cp", "Copy a file into or out of a guest.", _INSIDE),
    "agent": Entry("cmd_inside:agent", "Freeze, thaw, ask the guest's agent.", _INSIDE),
    "host": Entry("cmd_host:host", "Add, remove and probe hosts.", _REST),
    "pool": Entry("cmd_pool:pool", "Storage pools.", _REST),
    "volume": Entry("cmd_storage:volume", "Create, resize, copy, transfer and delete volumes.", _REST),
    "network": Entry("cmd_network:network", "Networks and their leases.", _REST),
    "image": Entry("cmd_storage:image", "Import, upload and delete images.", _REST),
    "doctor": Entry("cmd_doctor:doctor", "Say what is wrong with hosts, and what to do.", _REST),
    "explain": Entry("cmd_explain:explain", "Say what a field means.", _REST),
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
