"""Made-up lines in the shapes of eleven kinds of system, each with the statement that wrote it.

For measuring how well lines are grouped, on lines that no rule was written for: users, hosts,
components and lists vary, some statements begin with a variable, some are rare, some differ from
another in one word. Not here: real logs; those are compared with where they are (loghub).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

_USERS = (
    "root alice bob carol dave erin frank svc_backup deploy www-data jenkins mysql oracle guest test admin postgres ubuntu"
).split()
_APPS = (
    "com.acme.mail com.acme.maps org.example.reader com.tiny.game com.video.player com.chat.im system_server".split()
)
_SCREENS = ".MainActivity .ui.LoginActivity .ChatActivity .PlayerActivity .SettingsActivity$Inner".split()
_HOSTS = (
    "www.example.com cdn.acme.net api.chat.im static.foo.org mail.corp.cn a.b.c.akamai.net update.vendor.com".split()
)
_DAEMONS = "crond sshd ntpd cupsd acpid smartd xinetd hald messagebus haldaemon kudzu".split()
_FOLDERS = "var lib data app usr tmp cache x1 x22".split()
_CLASSES, _SUFFIXES = ("Foo", "Bar", "Baz", "Qux", "Handler"), ("Impl", "Service", "Manager", "")
_WORDS = "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima".split()
_DAYS, _MONTHS = "Mon Tue Wed Thu Fri Sat Sun".split(), "Jan Feb Mar Jul Dec".split()


def _hex(r: random.Random, n: int) -> str:
    return "".join(r.choice("0123456789abcdef") for _ in range(n))


_KINDS: dict[str, Callable[[random.Random], str]] = {
    "int": lambda r: str(r.randint(0, 99_999)),
    "sm": lambda r: str(r.randint(0, 9)),
    "big": lambda r: str(r.randint(10**9, 10**13)),
    "float": lambda r: f"{r.random() * 100:.{r.randint(1, 5)}f}",
    "neg": lambda r: str(r.randint(-500, 500)),
    "hex": lambda r: f"0x{_hex(r, r.randint(1, 8))}",
    "hex7": lambda r: _hex(r, 7),
    "hex40": lambda r: _hex(r, 40),
    "uuid": lambda r: "-".join(_hex(r, n) for n in (8, 4, 4, 4, 12)),
    "ip": lambda r: ".".join(str(r.randint(1, 254)) for _ in range(4)),
    "ipport": lambda r: f"{_KINDS['ip'](r)}:{r.randint(1024, 65_000)}",
    "mac": lambda r: ":".join(_hex(r, 2) for _ in range(6)),
    "user": lambda r: r.choice(_USERS),
    "app": lambda r: r.choice(_APPS),
    "act": lambda r: f"{r.choice(_APPS)}/{r.choice(_SCREENS)}",
    "bool": lambda r: r.choice(("true", "false")),
    "host": lambda r: r.choice(_HOSTS),
    "hostport": lambda r: f"{r.choice(_HOSTS)}:{r.choice((80, 443, 8080))}",
    "opthost": lambda r: r.choice(("", r.choice(_HOSTS), _KINDS["ip"](r))),
    "daemon": lambda r: r.choice(_DAEMONS),
    "pkg": lambda r: f"Package_for_{r.choice(_WORDS)}~31bf3856~{r.choice(('amd64', 'x86'))}~~6.{r.randint(0, 3)}.1.7",
    "path": lambda r: "".join(f"/{r.choice(_FOLDERS)}" for _ in range(r.randint(1, 5))),
    "winpath": lambda r: f"C:\\Windows\\{r.choice(('System32', 'Temp'))}\\{r.choice(_WORDS)}.dll",
    "size": lambda r: f"{r.random() * 900:.1f} {r.choice(('B', 'KB', 'MB'))}",
    "life": lambda r: r.choice(("<1 sec", f"00:{r.randint(1, 59):02}", f"01:{r.randint(0, 59):02}:30")),
    "node": lambda r: f"node-{r.randint(0, 255)}",
    "nodes": lambda r: " ".join(f"node-{r.randint(0, 255)} 0x{_hex(r, 9)} <ok>" for _ in range(r.randint(1, 5))),
    "ids": lambda r: " ".join(f"blk_{r.randint(1, 10**9)}" for _ in range(r.randint(1, 6))),
    "list": lambda r: ", ".join(str(r.randint(0, 99)) for _ in range(r.randint(1, 6))),
    "names": lambda r: f"[{', '.join(r.sample(_USERS, r.randint(1, 4)))}]",
    "comp": lambda r: r.choice(("alt0", "alt1", "scsi", "fs", "net", "eth0", "cluster")),
    "state": lambda r: r.choice(("available", "unavailable", "online", "degraded")),
    "class": lambda r: f"com.acme.{r.choice(('core', 'web', 'db'))}.{r.choice(_CLASSES)}{r.choice(_SUFFIXES)}",
    "eth": lambda r: r.choice(("eth0", "eth1", "en0", "en1", "lo0", "utun2")),
    "time": lambda r: f"{r.randint(0, 23):02}:{r.randint(0, 59):02}:{r.randint(0, 59):02}",
    "date": lambda r: f"2017-{r.randint(1, 12):02}-{r.randint(1, 28):02} {_KINDS['time'](r)}.{r.randint(100, 999)}",
    "sysdate": lambda r: f"{r.choice(_DAYS)} {r.choice(_MONTHS)} {r.randint(1, 28)} {_KINDS['time'](r)} 2005",
    "queue": lambda r: r.choice(("default", "high", "low", "emails", "reports", "billing", "payments")),
    "topic": lambda r: r.choice(("orders", "payments", "clicks", "audit-log", "user.events", "shipments")),
    "job": lambda r: r.choice(("daily_report", "clean_cache", "sync_users", "send_emails", "rebuild_index")),
    "sess": lambda r: f"{r.randint(10**7, 10**8)}_{r.randint(10**8, 10**9)}",
    "qid": lambda r: f"{r.choice('jkl')}{''.join(r.choice('abcABC123') for _ in range(5))}{r.randint(10_000, 99_999)}",
    "unit": lambda r: r.choice(("nginx.service", "cron.service", "user@1000.service", "ssh.socket")),
    "tbl": lambda r: r.choice(("users", "orders", "order_items", "invoices", "audit_log", "sessions")),
    "word": lambda r: r.choice(_WORDS),
    "thread": lambda r: r.choice((f"Thread-{r.randint(1, 99)}", f"pool-1-thread-{r.randint(1, 9)}")),
}

# Frequency, then the statement; <kind> is a variable.
_STATEMENTS = {
    "phone": r"""
40 printFreezingLogs opening wtoken = AppWindowToken{<hex7> token=Token{<hex7> ActivityRecord{<hex7> u0 <act> t<int>}}, allDrawn= <bool>, startingDisplayed =  <bool>, startingMoved =  <bool>, isRelaunching =  <bool>
30 acquire lock=<int>, flags=<hex>, tag="View Lock", name=<app>, ws=null, uid=<int>, pid=<int>
30 release lock=<int>, flg=<hex>, tag="View Lock", name=<app>, ws=null, uid=<int>, pid=<int>
20 ready=<bool>,policy=<sm>,wakefulness=<sm>,wksummary=<hex>,uasummary=<hex>,bootcompleted=<bool>,mode=<bool>,manual=<int>,auto=<neg>,adj=<float>userId=<sm>
20 Skipping AppWindowToken{<hex7> token=Token{<hex7> ActivityRecord{<hex7> u0 <act> t<int>}} -- going to hide
20 visible is system.time.showampm
20 getValue is <bool>
15 setUiVisibility vis=<int> mask=<hex7> oldVal=<sm> newVal=<int> diff=<int> fullscreenStackVis=<sm> dockedStackVis=<sm>
15 animateCollapse: flags=<sm>, force=<bool>, delayed=<bool>, mExpandedVisible=<bool>
10 userActivityNoUpdate: eventTime=<int>, event=<sm>, flags=<hex>, uid=<int>
10 getTasks: caller <int> does not hold REAL_GET_TASKS; limiting output
10 brightnessOut =<int>
8 Start proc <int>:<app>/u0a<int> for activity <act>
6 Force stopping <app> appid=<int> user=<sm>: from pid <int>
5 Killing <int>:<app>/u0a<int> (adj <int>): empty #<int>
5 dispatchSignalStrength: subId=<sm> mSignalStrength=SignalStrength: <list> gsm|lte
3 START u0 {act=android.intent.action.MAIN flg=<hex> cmp=<act>} from uid <int> on display <sm>
3 overlay ver is <float>
2 cancelAutohide
2 notifyUiVisibilityChanged:vis=<hex>, SystemUiVisibility:<hex>
1 Unable to start service Intent { act=com.acme.PUSH cmp=<act> } U=<sm>: not found
""",
    "health": r"""
40 onStandStepChanged <int>
20 onExtend:<big> <int> <sm> <sm>
20 getTodayTotalDetailSteps = <big>##<int>##<int>##<int>##<int>##<big>
20 setTodayTotalDetailSteps=<big>##<int>##<int>##<int>##<int>##<big>
15 calculateCaloriesWithCache totalCalories=<int>
15 calculateAltitudeWithCache totalAltitude=<int>
15 REPORT : <int> <int> <int> <int>
10 processHandleBroadcastAction action:android.intent.action.SCREEN_ON
10 processHandleBroadcastAction action:android.intent.action.SCREEN_OFF
5 flush sensor data
5 new date =<int>, type=<int>,<float>,old=<float>
3 saveStatData fail errorCode = <int>,errorMessage = ERR_DATA_INSERT
3 upload result is <bool>
2 setTotalSteps <int> to preference
1 initEngine return, state <sm>
""",
    "cluster": r"""
30 inconsistent nodesets <nodes>
20 PSU status ( on on )
20 PSU status ( off on )
25 Component State Change: Component \042<comp>\042 is in the <state> state (HWID=<int>)
15 Link error on broadcast tree Interconnect-<hex>:00:0:<sm>
15 ambient=<int>
15 Fan speeds ( <int> <int> <int> <int> <int> <int> )
10 boot (command <int>) Error: timed out
10 halt (command <int>) Error: timed out
8 Temperature (<int>C) exceeds warning threshold
8 <node> has detected an available network connection on network <ip> via interface <comp>
8 ServerFileSystem domain storage<int> is full
5 Targeting domains:<node> and nodes:node-[<list>] child of command <int>
5 ClusterFileSystem: There is no server for ServerFileSystem domain storage<int>
3 Link ok on broadcast tree
3 running
2 not responding
2 network <comp> is down on <node>
""",
    "laptop": r"""
20 ARPT: <float>: AirPort_Brcm43xx::syncPowerState: WWEN[enabled]
20 ARPT: <float>: wl0: wl_update_tcpkeep_seq: Original Seq: <big>, Ack: <big>, Win size: <int>
15 <eth>: BSSID changed to <mac>
15 Thermal pressure state: <sm> Memory pressure state: <sm>
12 hibernate image path: <path>
10 AirPort: Link Down on <eth>. Reason <sm> (Disassociated because station leaving).
10 AirPort: Link Up on <eth>
8 [HID] [ATC] AppleDeviceManagementHIDEventService::processWakeReason Wake reason: Host (<hex>)
8 PM response took <int> ms (<int>, powerd)
8 Captive: [CNInfoNetworkActive:<int>] <eth>: SSID 'corp-<int>' making interface primary (cache indicates network not captive)
8 IOThunderboltSwitch<<sm>>(<hex>)::listenerCallback - Thunderbolt HPD packet for route = <hex> port = <int> unplug = <sm>
5 assertion failed: 15G1611: libxpc.dylib + <int> [<uuid>]: <hex>
5 -[SOAccount statusMessage: <hex>] - not logged in (<user>)
5 Failed to read data for <class>, error: <int>
3 Sandbox: com.apple.WebKit(<int>) deny(1) mach-lookup com.acme.<word>
3 network changed: v4(<eth>:<ip>) DNS* Proxy
3 network changed: v4(<eth>-:<ip>) DNS- Proxy-
3 Wake reason: RTC (Alarm)
2 <time> Error: no device
1 tcp_connection_destination_perform_socket_connect <int> connectx to <ipport>@<sm> failed: [<int>] Network is unreachable
""",
    "cloud": r"""
40 <ip> "GET /v2/<hex40>/servers/detail HTTP/1.1" status: 200 len: <int> time: <float>
20 <ip> "POST /v2/<hex40>/os-server-external-events HTTP/1.1" status: 200 len: <int> time: <float>
10 <ip> "DELETE /v2/<hex40>/servers/<uuid> HTTP/1.1" status: 204 len: <int> time: <float>
12 [instance: <uuid>] VM Started (Lifecycle Event)
12 [instance: <uuid>] VM Paused (Lifecycle Event)
12 [instance: <uuid>] VM Resumed (Lifecycle Event)
10 image <uuid> at (<path>): in use: on this node <sm> local, <sm> on other nodes sharing this instance storage
10 image <uuid> at (<path>): checking
10 Active base files: <path>
8 [instance: <uuid>] Took <float> seconds to spawn the instance on the hypervisor.
8 [instance: <uuid>] Total memory: <int> MB, used: <float> MB
8 [instance: <uuid>] memory limit: <float> MB, free: <float> MB
8 Creating event network-vif-plugged:<uuid> for instance <uuid>
5 HTTP exception thrown: No instances found for any event
5 Auditing locally available compute resources for node <host>
5 Final resource view: name=<host> phys_ram=<int>MB used_ram=<int>MB phys_disk=<int>GB used_disk=<int>GB total_vcpus=<sm> used_vcpus=<sm> pci_stats=[]
3 Removable base files: <path> <path>
3 Removable base files: <path>
2 The instance sync for host '<host>' did not match. Re-created its InstanceList.
""",
    "proxy": r"""
40 <hostport> open through proxy proxy.corp.edu:5070 HTTPS
30 <hostport> close, <int> bytes sent, <int> bytes received, lifetime <life>
25 <hostport> close, <int> bytes (<float> KB) sent, <int> bytes (<float> KB) received, lifetime <life>
20 <hostport> close, <int> bytes sent, <int> bytes (<float> MB) received, lifetime <life>
10 <hostport> close, <int> bytes (<float> KB) sent, <int> bytes received, lifetime <life>
5 <hostport> error : Could not connect through proxy proxy.corp.edu:5070 - Proxy server cannot establish a connection with the target, status code <int>
2 <hostport> error : A connection request was canceled before the completion.
""",
    "super": r"""
30 session opened for user <user> by (uid=<sm>)
30 session closed for user <user>
20 (<user>) CMD (run-parts /etc/cron.hourly)
20 data_thread() got not answer from any [Src_<comp>] datasource
15 synchronized to <ip>, stratum <sm>
12 DHCPDISCOVER from <mac> via <eth>: network A_net: no free leases
12 DHCPDISCOVER from <mac> via <eth>
8 connect from <host> [<ip>]
8 connection from <ip> (<opthost>) at <sysdate>
8 ACPI: LAPIC (acpi_id[<hex>] lapic_id[<hex>] enabled)
8 ACPI: LAPIC (acpi_id[<hex>] lapic_id[<hex>] disabled)
8 <qid>: from=<user>, size=<int>, class=<sm>, nrcpts=<sm>, msgid=<<int>.<qid>@<host>>, relay=<user>@localhost
8 <qid>: to=<user>, ctladdr=<user> (<sm>/<sm>), delay=<time>, mailer=relay, pri=<int>, relay=[<ip>] [<ip>], dsn=<sm>.<sm>.<sm>, stat=Sent (<qid> Message accepted for delivery)
5 <daemon> startup succeeded
5 <daemon> shutdown succeeded
4 Accepted publickey for <user> from ::ffff:<ip> port <int> ssh2
4 Failed password for <user> from <ip> port <int> ssh2
4 START: tftp pid=<int> from=<ip>
3 EXIT: tftp pid=<int> duration=<int>(sec)
3 Losing some ticks... checking if CPU frequency changed.
3 removing device node '<path>'
2 CPU<sm>: Intel(R) Xeon(TM) CPU <float>GHz stepping <sm>
2 Bootdata ok (command line is ro root=LABEL=/ rhgb quiet)
2 warning: many lost ticks.
1 scsi<sm> : ioc<sm>: LSI53C1030, FwRev=<hex>, Ports=<sm>, MaxQ=<int>, IRQ=<int>
""",
    "win": r"""
30 Warning: Unrecognized packageExtended attribute.
20 Expecting attribute name [HRESULT = <hex> - CBS_E_MANIFEST_INVALID_ITEM]
20 Failed to get next element [HRESULT = <hex> - CBS_E_MANIFEST_INVALID_ITEM]
20 SQM: Initializing online with Windows opt-in: False
15 Loaded Servicing Stack v<sm>.<sm>.<int>.<int> with Core: <winpath>
15 Read out cached package applicability for package: <pkg>, ApplicableState: <int>, CurrentState:<int>
15 Session: <sess> initialized by client WindowsUpdateAgent.
10 <int> Creating NT transaction (seq <sm>), objectname [6]"(null)"
10 <int> Created NT transaction (seq <sm>) result <hex>, handle @<hex>
8 <int>@2016/9/27:<time>.<int> PopulateComponentFamiliesKey - Begin
8 <int>@2016/9/27:<time>.<int> PopulateComponentFamiliesKey - End
5 TrustedInstaller service starts successfully.
5 Ending TrustedInstaller finalization.
5 SQM: Requesting upload of all unsent reports.
5 SQM: Failed to start upload with file pattern: <winpath>, flags: <hex> [HRESULT = <hex> - E_FAIL]
3 No startup processing required, TrustedInstaller service was not set as autostart
2 SQM: Queued <int> file(s) for upload with pattern: <winpath>, flags: <hex>
""",
    "webapp": r"""
30 Task billing.<job>[<uuid>] received
30 Task billing.<job>[<uuid>] succeeded in <float>s: None
15 Started GET "<path>" for <ip> at <date>
15 Completed 200 OK in <int>ms (Views: <float>ms | ActiveRecord: <float>ms)
15 user <user> logged in from <ip>
15 user <user> logged out
10 job <job> queued on <queue>
10 job <job> finished in <float>s
10 cache miss for key user:<int>:profile
10 published message <uuid> to topic <topic> partition <sm> offset <big>
8 consumer <thread> joined group <topic>
6 retrying in <float>s (attempt <sm>/5)
6 slow query on table <tbl>: <float>ms
5 java.io.IOException: connection to <hostport> refused
3 java.lang.NullPointerException: connection to <hostport> refused
5 connection refused
5 connection reset by peer
5 order <int> paid
5 order <int> refunded
5 order <int> cancelled
4 permission denied for <user> on table <tbl>
3 loaded <int> rules from <path>
3 deploy of v<sm>.<sm>.<int> started
2 deploy of v<sm>.<sm>.<int> finished
2 worker <thread> is idle
2 recipients <names> notified
""",
    "jvm": r"""
20 Registering class <class> for class <class>
20 Starting <class> on thread <thread>
15 attempt_<int>_<sm> Transitioned from NEW to ASSIGNED
15 attempt_<int>_<sm> Transitioned from ASSIGNED to RUNNING
12 attempt_<int>_<sm> Transitioned from RUNNING to SUCCEEDED
15 Block pool BP-<int> (storage id DS-<uuid>) service to <hostport> starting to offer service
12 block broadcast_<int> stored as values in memory (estimated size <size>, free <size>)
12 block broadcast_<int>_piece<sm> stored as bytes in memory (estimated size <size>, free <size>)
10 Connected to <host>/<ipport>
10 ask <ipport> to delete <ids>
8 GC pause <float> secs
8 Initializing <class>
8 Opened session <hex> for client /<ipport>
5 Bean <word>Service created
5 Bean <word>Service destroyed
5 Property <word>.timeout set to <int>
3 Unable to load native library
3 caught end of stream exception
2 Shutdown hook called
2 changing view acls to: <user>
""",
    "unit": r"""
20 Started <unit>.
20 Stopped <unit>.
10 <unit>: Main process exited, code=exited, status=<sm>/FAILURE
10 <unit>: Succeeded.
10 <unit>: Failed with result 'exit-code'.
10 Created slice User Slice of <user>.
10 New session <int> of user <user>.
10 Removed session <int>.
10 IN=<eth> OUT= MAC=<mac> SRC=<ip> DST=<ip> LEN=<int> TTL=<int> PROTO=TCP SPT=<int> DPT=<int> WINDOW=<int> SYN
10 IN=<eth> OUT= MAC=<mac> SRC=<ip> DST=<ip> LEN=<int> TTL=<int> PROTO=UDP SPT=<int> DPT=<int> LEN=<int>
8 usb <sm>-<sm>: new high-speed USB device number <sm> using xhci_hcd
8 <eth>: link becomes ready
8 <eth>: renamed from <eth>
5 Reached target <word>.
5 pam_unix(cron:session): session opened for user <user> by (uid=<sm>)
5 pam_unix(sudo:session): session opened for user <user> by <user>(uid=<int>)
5 <user> : TTY=pts/<sm> ; PWD=<path> ; USER=<user> ; COMMAND=<path>
3 Out of memory: Kill process <int> (<daemon>) score <int> or sacrifice child
2 clocksource: Switched to clocksource tsc
""",
}

SYSTEMS = tuple(_STATEMENTS)


def lines(system: str, number: int, seed: int) -> list[tuple[str, str]]:
    """Return lines of a system, each with its statement."""
    r = random.Random(f"{system} {seed}")
    weighted = [line.split(" ", 1) for line in _STATEMENTS[system].strip().splitlines()]
    statements = r.choices([s for _, s in weighted], [int(weight) for weight, _ in weighted], k=number)
    return [(re.sub(r"<(\w+)>", lambda m: _KINDS[m[1]](r) if m[1] in _KINDS else m[0], s), s) for s in statements]
